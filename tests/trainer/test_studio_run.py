"""Whole runs for Z-Image and Qwen-Image: cache, training, pictures, resume, plan, export, evaluation."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from ipadapter_trainer.config import Config
from ipadapter_trainer.evaluation import evaluate
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.files.inspection import inspect_path
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.planning import make_plan
from support.pretend_device import pretend_device
from support.ranks import run_ranks
from support.runs import WATCHED, assert_goes_on_exactly, cached, fill_cache, losses, weights
from support.tiny_studio_base import write_studio_base
from support.training import make_config, train_with_one_thread, write_pictures

pytestmark = pytest.mark.usefixtures("no_report")
FAMILIES = {"z_image": "Z-Image", "qwen_image": "Qwen-Image"}


each_with_and_without_cache = pytest.mark.parametrize("is_cached", [pytest.param(False, marks=pytest.mark.long), True])


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def config(family: str, tmp_path: Path, encoder_folder: Callable[[str], Path]) -> Callable[..., Config]:
    base = write_studio_base(tmp_path / "base", family)
    pictures = write_pictures(tmp_path / "pictures", 4)

    def make(run: str, **changes: dict[str, Any]) -> Config:
        whole: dict[str, dict[str, Any]] = {
            "adapter": {"kind": "plus", "resampler_dim": 64, "tokens": 4},
            "objective": {"timestep_sampling": "sigmoid"},
            "optimizer": {"learning_rate": 0.01},
        }
        return make_config(base, encoder_folder("clip"), pictures, tmp_path / run, **whole | changes)

    return make


def test_a_whole_run(config: Callable[..., Config], family: str, tmp_path: Path) -> None:
    """With a cache; what is exported says what it is, and is read again."""
    named, watched = FAMILIES[family], WATCHED | {"strengths": [0.0, 1.0], "guidance": 3.0}
    one = config("run", validation=watched, **cached(tmp_path))
    fill_cache(one)
    plan = make_plan(one).to_json()
    assert (plan["trained"]["adapter"], plan["trained"]["prediction_type"]) == (f"{named} plus", "flow")
    assert train(one).is_finished
    report = export_checkpoint(one.run, None)
    assert report.portability.reasons == (f"diffusers has no adapters for {named}",)
    assert "native nodes only" in report.card.read_text()
    found = inspect_path(report.path)
    assert (found["kind"], found["base"], found["sites"]) == ("adapter", named, 3)
    with safe_open(report.path, "pt") as file:
        stated, names = file.metadata(), set(file.keys())
    spec = json.loads(stated["ipadapter.spec"])
    assert (spec["backbone"], spec["layout"], spec["negative"]) == (named, "IP-Adapter Studio", "zero_pixels")
    assert json.loads(stated["ipadapter.training"])["prediction_type"] == "flow"
    assert {f"ip_adapter.2.{name}.weight" for name in ("to_k_ip", "to_v_ip", "norm_ip_k")} < names
    kinds = [record["kind"] for record in read_records(one.run)]
    assert kinds.count("samples") == 3
    evaluate(one, report.path, one.run, images=1)


@each_with_and_without_cache
def test_a_resumed_run_is_the_uninterrupted_one(config: Callable[..., Config], tmp_path: Path, is_cached: bool) -> None:
    assert_goes_on_exactly(config, tmp_path, is_cached=is_cached)


@each_with_and_without_cache
def test_on_a_gpu(config: Callable[..., Config], tmp_path: Path, is_cached: bool) -> None:
    """Every tensor is where it must be: bfloat16, checkpointing, validation, pictures."""
    with pretend_device("cuda") as cuda:
        one = config(
            "run",
            base={"precision": "bf16"},
            train={"steps": 2, "batch_size": 2, "log_every": 1, "trackers": [], "gradient_checkpointing": True},
            validation=WATCHED | {"sampler_steps": 1, "strengths": [1.0]},
            **(cached(tmp_path) if is_cached else {}),
        )
        if is_cached:
            fill_cache(one, cuda)
        outcome = train(one)
    assert outcome.is_finished
    assert all(map(math.isfinite, outcome.losses))


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_are_one_of_twice_the_batch(config: Callable[..., Config]) -> None:
    def of(run: str, steps: int, batch_size: int) -> Config:
        train = {"steps": steps, "batch_size": batch_size, "log_every": 1, "trackers": []}
        # values of zero would leave gradients that are next to nothing, which AdamW follows by the sign of their rounding
        adapter = {"kind": "plus", "resampler_dim": 64, "tokens": 4, "init": "random"}
        return config(run, train=train, adapter=adapter, optimizer={"learning_rate": 1e-3})

    for steps in (2, 4):
        assert run_ranks(2, train_with_one_thread, of("parts", steps, 1)) == [0, 0]
    train(of("one", 4, 2))
    assert losses(of("parts", 4, 1)) == pytest.approx(losses(of("one", 4, 2)), rel=1e-5)
    given, wanted = weights(of("parts", 4, 1)), weights(of("one", 4, 2))
    assert given.keys() == wanted.keys()
    far = {name: ((given[name] - wanted[name]).abs() > 1e-4).float().mean() for name in wanted}
    assert all(share < 1e-3 for share in far.values())
