"""Whole runs on a tiny FLUX.1: cache, training, validation, pictures, resume, export, and what the commands say."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.file.container import read_header
from ipadapter_trainer.config import Config
from ipadapter_trainer.evaluation import evaluate
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.plan_words import plan_in_words
from ipadapter_trainer.planning import make_plan
from support import runs
from support.pretend_device import pretend_device
from support.ranks import run_ranks
from support.runs import weights
from support.tiny_flux_base import write_flux_base
from support.training import make_config, train_with_one_thread, write_pictures

pytestmark = pytest.mark.usefixtures("no_report")
SIZE = 64
WATCHED = runs.WATCHED | {"sampler_steps": 1, "strengths": [1.0]}
PLUS = {"kind": "plus", "tokens": 6, "resampler_dim": 32, "resampler_depth": 1, "resampler_head_dim": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux_base(tmp_path_factory.mktemp("flux") / "base")


@pytest.fixture
def config(folder: Path, encoder_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Config]:
    """Of a run that does everything."""
    pictures = write_pictures(tmp_path / "pictures", 6)

    def make(run: str, steps: int = 4, **changes: dict[str, Any]) -> Config:
        whole: dict[str, dict[str, Any]] = {
            "validation": WATCHED,
            "cache": {"path": str(tmp_path / "cache"), "precision": "fp32"},
            "objective": {"timestep_sampling": "sigmoid"},
            **changes,
        }
        whole["train"] = {"steps": steps, "batch_size": 2, "log_every": 1, "trackers": [], **changes.get("train", {})}
        return make_config(folder, encoder_folder("clip"), pictures, tmp_path / run, **whole)

    return make


@pytest.mark.parametrize("adapter", [{"kind": "base", "tokens": 4}, pytest.param(PLUS, marks=pytest.mark.long)])
def test_run_fills_its_cache_goes_on_exactly_and_is_exported(
    config: Callable[..., Config], adapter: dict[str, Any]
) -> None:
    whole, part = (config(name, adapter=adapter) for name in ("whole", "part"))
    outcome = train(whole)
    assert outcome.is_finished
    assert all(map(math.isfinite, outcome.losses))
    train(config("part", 2, adapter=adapter))
    train(part)
    given, wanted = weights(part), weights(whole)
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)
    records = read_records(whole.run)
    assert [record["kind"] for record in records].count("validation") == 3
    assert [record["guidance"] for record in records if record["kind"] == "samples"] == [3.5] * 3, "as is usual for dev"
    report = export_checkpoint(whole.run, None)
    assert report.portability.weights_load == (adapter["kind"] == "base")
    metadata = read_header(report.path)["__metadata__"]
    assert metadata["modelspec.architecture"] == "flux-1-dev/ip-adapter"
    assert "modelspec.prediction_type" not in metadata
    assert '"prediction_type": "flow"' in metadata["ipadapter.training"]
    scores = evaluate(whole, report.path, whole.run, images=1)
    assert scores["guidance"] == 3.5


def test_cache_without_text_encoders_trains_the_same(config: Callable[..., Config]) -> None:
    """What is encoded in each step is what was encoded once."""
    cached = train(config("cached", 2))
    every = train(config("every", 2, cache={}))
    assert cached.losses == pytest.approx(every.losses, rel=1e-5)


def test_plan_says_what_it_takes(config: Callable[..., Config]) -> None:
    one = config("run")
    plan = make_plan(one).to_json()
    assert plan["trained"]["adapter"] == "FLUX.1 base"
    assert plan["trained"]["prediction_type"] == "flow"
    assert plan["memory"]["frozen_model"] > 0
    words = plan_in_words(plan, one, memory=None, file="flux.toml")
    assert "FLUX.1 base" in str(words["trains"])


@pytest.mark.parametrize("is_cached", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_whole_run_on_a_gpu_that_is_not_there(config: Callable[..., Config], is_cached: bool) -> None:
    """In bfloat16, with checkpointing: nothing is left on the wrong side."""
    models: dict[str, Any] = {"base": {"precision": "bf16"}, "encoder": {"precision": "bf16"}}
    models |= {} if is_cached else {"cache": {}}
    with pretend_device("cuda"):
        outcome = train(config("run", 2, **models, train={"gradient_checkpointing": True}))
    assert outcome.is_finished
    assert all(map(math.isfinite, outcome.losses))


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_are_one_of_twice_the_batch(config: Callable[..., Config]) -> None:
    plain: dict[str, Any] = {"validation": {}, "cache": {}}
    two, one = config("two", 3, train={"batch_size": 1}, **plain), config("one", 3, train={"batch_size": 2}, **plain)
    assert run_ranks(2, train_with_one_thread, two) == [0, 0]
    alone = train(one).losses
    losses = [record["loss"] for record in read_records(two.run) if record["kind"] == "train"]
    assert losses == pytest.approx(list(alone), rel=1e-3)
