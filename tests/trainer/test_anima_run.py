"""Whole runs for Anima: cache, training, pictures, resume, plan, export, evaluation."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from ipadapter_trainer.config import Config
from ipadapter_trainer.evaluation import evaluate
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.files.inspection import inspect_path
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.planning import make_plan
from ipadapter_trainer.resume.identify import default_settings
from ipadapter_trainer.run import open_run
from ipadapter_trainer.state import CheckpointError
from support.pretend_device import pretend_device
from support.rank_work import train_sharded
from support.ranks import run_ranks
from support.runs import WATCHED, assert_goes_on_exactly, cached, fill_cache, losses, weights
from support.tiny_anima_base import write_anima_base
from support.training import make_config, train_with_one_thread, write_pictures

pytestmark = pytest.mark.usefixtures("no_report")


KINDS: dict[str, dict[str, Any]] = {  # of gates
    "none": {"kind": "plus", "resampler_dim": 64, "resampler_depth": 1, "tokens": 4},
    "block": {"kind": "plus", "resampler_dim": 64, "resampler_depth": 1, "tokens": 4, "gate": "block"},
    "time": {"kind": "plus", "resampler_depth": 1, "tokens": 4, "gate": "time"},
}


@pytest.fixture
def gate(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "none")


@pytest.fixture
def config(tmp_path: Path, encoder_folder: Callable[[str], Path], gate: str) -> Callable[..., Config]:
    base = write_anima_base(tmp_path / "base")
    pictures = write_pictures(tmp_path / "pictures", 4)

    def make(run: str, **changes: dict[str, Any]) -> Config:
        whole: dict[str, dict[str, Any]] = {
            "adapter": KINDS[gate],
            "encoder": {"feature": "last_hidden_state"},
            "objective": {"timestep_sampling": "sigmoid"},
            "optimizer": {"learning_rate": 0.01},
        }
        return make_config(base, encoder_folder("clip"), pictures, tmp_path / run, **whole | changes)

    return make


def test_a_whole_run(config: Callable[..., Config], tmp_path: Path) -> None:
    """With a cache; what is exported has anima_lora's names, says what it is, and is read again."""
    watched = WATCHED | {"strengths": [0.0, 1.0], "guidance": 3.0}
    one = config("run", validation=watched, **cached(tmp_path))
    fill_cache(one)
    plan = make_plan(one).to_json()
    assert (plan["trained"]["adapter"], plan["trained"]["prediction_type"]) == ("Anima plus", "flow")
    assert train(one).is_finished
    report = export_checkpoint(one.run, None)
    assert report.portability.reasons == ("diffusers has no adapters for Anima",)
    assert "native nodes only" in report.card.read_text()
    found = inspect_path(report.path)
    assert (found["kind"], found["base"], found["sites"]) == ("adapter", "Anima", 3)
    assert inspect_path(Path(one.base.model))["pipeline"] == "AnimaModularPipeline"
    with safe_open(report.path, "pt") as file:
        stated, names = file.metadata(), set(file.keys())
    spec = json.loads(stated["ipadapter.spec"])
    assert (spec["backbone"], spec["layout"], spec["negative"]) == ("Anima", "Anima PE", "zero_pixels")
    assert (spec["feature"], spec["encoder"]["kind"]) == ("last_hidden_state", "CLIP")
    assert json.loads(stated["ipadapter.training"])["prediction_type"] == "flow"
    assert (stated["ss_network_spec"], stated["ss_encoder"], stated["ss_num_blocks"]) == ("ip_adapter", "CLIP", "3")
    assert {
        "to_k_ip.2.weight",
        "to_v_ip.2.weight",
        "resampler.queries",
        "resampler.blocks.0.xattn.in_proj_weight",
    } < names
    kinds = [record["kind"] for record in read_records(one.run)]
    assert kinds.count("samples") == 3
    evaluate(one, report.path, one.run, images=1)
    on = config("on", adapter=one.adapter.model_dump() | {"pretrained": str(report.path)}, train={"steps": 1})
    assert train(on).is_finished


@pytest.mark.parametrize(
    ("gate", "names", "layout"),
    [
        ("block", {"ip_gate.2", "to_k_ip.2.weight"}, "Anima PE gated"),
        (
            "time",
            {"blocks.2.adaln_ip.1.weight", "blocks.2.ip_k_proj.bias", "siglip_compressor.queries"},
            "Anima LuciferTC",
        ),
    ],
    indirect=["gate"],
)
def test_a_whole_run_with_a_gate(
    config: Callable[..., Config], tmp_path: Path, gate: str, names: set[str], layout: str
) -> None:
    """As `test_a_whole_run`, by the names and the arithmetic of their authors."""
    one = config("run", validation=WATCHED | {"strengths": [0.0, 0.5], "guidance": 3.0}, **cached(tmp_path))
    fill_cache(one)
    make_plan(one)
    assert train(one).is_finished
    report = export_checkpoint(one.run, None)
    assert report.portability.reasons == ("diffusers has no adapters for Anima",)
    with safe_open(report.path, "pt") as file:
        assert names <= set(file.keys())
        spec = json.loads(file.metadata()["ipadapter.spec"])
        changed = file.get_tensor("ip_gate.2" if gate == "block" else "blocks.2.adaln_ip.1.weight")
    assert changed.any(), "the gate is still closed"
    assert spec["layout"] == layout
    if gate == "time":
        assert (spec["negative"], spec["encoder"]["padding"]) == ("zero_features", "mean")  # not black, as LuciferTC's
    assert inspect_path(report.path)["kind"] == "adapter"
    evaluate(one, report.path, one.run, images=1)
    on = config("on", adapter=one.adapter.model_dump() | {"pretrained": str(report.path)}, train={"steps": 1})
    assert train(on).is_finished


@pytest.mark.parametrize(
    ("gate", "is_cached"), [("none", False), ("none", True), ("block", True), ("time", True)], indirect=["gate"]
)
def test_a_resumed_run_is_the_uninterrupted_one(config: Callable[..., Config], tmp_path: Path, is_cached: bool) -> None:
    assert_goes_on_exactly(config, tmp_path, is_cached=is_cached)


@pytest.mark.parametrize(("gate", "other"), [("none", "block"), ("block", "none"), ("none", "time")], indirect=["gate"])
def test_a_run_does_not_go_on_with_another_gate(config: Callable[..., Config], gate: str, other: str) -> None:
    """The gate alone is named: what else of the adapter differs then follows from it. Where the setting stays, none is."""
    first = config("run", train={"steps": 2, "batch_size": 2, "log_every": 1, "trackers": []})
    assert train(first).is_finished
    changed = config("run", adapter=KINDS[other])
    wanted = rf"another: adapter\.gate is '{other}', was '{gate}'\. .*What to do: set adapter\.gate back; or"
    with pytest.raises(CheckpointError, match=wanted):
        train(changed)
    assert re.search(wanted, make_plan(changed).to_json()["refused"])
    before = open_run(first).state.identity()
    assert before.settings["adapter.gate"] == gate
    if gate == "none":  # as it was written before there were gates
        kept = {name: value for name, value in before.settings.items() if name != "adapter.gate"}
        assert not list(before.differences(replace(before, settings=kept), default_settings()))
    assert not open_run(changed).state.identity().fits(before)


@pytest.mark.parametrize("gate", ["none", "time"], indirect=True)
def test_a_run_on_a_gpu_that_is_not_there(config: Callable[..., Config], tmp_path: Path) -> None:
    """In half precision, from texts and a cache that is filled there as well."""
    halves = {"base": {"precision": "bf16"}, "encoder": {"feature": "last_hidden_state", "precision": "bf16"}}
    steps = {"steps": 2, "batch_size": 2, "log_every": 1, "trackers": [], "gradient_checkpointing": True}
    with pretend_device("cuda") as device:
        assert train(config("texts", train=steps, validation=WATCHED, **halves)).is_finished
        one = config("run", train=steps, **halves, **cached(tmp_path))
        fill_cache(one, device)
        outcome = train(one)
    assert outcome.is_finished
    assert all(map(math.isfinite, outcome.losses))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("gate", "work"),
    [(gate, train_with_one_thread) for gate in KINDS] + [(gate, train_sharded) for gate in ("none", "time")],
    indirect=["gate"],
)
def test_two_processes_are_one_of_twice_the_batch(
    config: Callable[..., Config], work: Callable[[Config], None]
) -> None:
    """Also with a part of the weights in each, by FSDP."""

    def of(run: str, steps: int, batch_size: int) -> Config:
        return config(run, train={"steps": steps, "batch_size": batch_size, "log_every": 1, "trackers": []})

    for steps in (2, 4):
        assert run_ranks(2, work, of("parts", steps, 1)) == [0, 0]
    train(of("one", 4, 2))
    given, wanted = weights(of("parts", 4, 1)), weights(of("one", 4, 2))
    assert given.keys() == wanted.keys()
    assert losses(of("parts", 4, 1)) == pytest.approx(losses(of("one", 4, 2)), rel=1e-3)
    # a bias of keys has no gradient but rounding's, which AdamW makes as large as any
    names = [name for name in wanted if not name.endswith("in_proj_bias")]
    assert [name for name in names if not torch.allclose(given[name], wanted[name], atol=1e-3)] == []
