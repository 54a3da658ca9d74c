"""Whole runs for Z-Image and Qwen-Image: cache, training, pictures, resume, plan, export, evaluation."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ipadapter_trainer.cache.fill import fill
from ipadapter_trainer.config import Config
from ipadapter_trainer.data.sources import open_sources
from ipadapter_trainer.evaluation import evaluate
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.files.inspection import inspect_path
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.models.image_encoder import load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.planning import make_plan
from ipadapter_trainer.readers.pictures import PictureReader
from ipadapter_trainer.watch import observe
from support.tiny_studio_base import write_studio_base
from support.training import make_config, write_pictures

CPU = torch.device("cpu")
FAMILIES = {"z_image": "Z-Image", "qwen_image": "Qwen-Image"}
WATCHED = {"every": 2, "images": 2, "timesteps": [500], "sample_every": 2, "samples": 1, "sampler_steps": 2}


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves take longer than all the rest."""
    monkeypatch.setattr(observe, "write_report", lambda run, *, is_live: None)


@pytest.fixture(params=FAMILIES)
def config(request: pytest.FixtureRequest, tmp_path: Path, encoder_folder: Callable[[str], Path]) -> Config:
    base = write_studio_base(tmp_path / "base", request.param)
    return make_config(
        base,
        encoder_folder("clip"),
        write_pictures(tmp_path / "pictures", 4),
        tmp_path / "run",
        adapter={"kind": "plus", "resampler_dim": 64, "tokens": 4},
        objective={"timestep_sampling": "sigmoid"},
        optimizer={"learning_rate": 0.01},
        cache={"path": str(tmp_path / "cache"), "precision": "fp32"},
        validation=WATCHED | {"strengths": [0.0, 1.0], "guidance": 3.0},
    )


def losses(config: Config) -> dict[int, float]:
    return {one["step"]: one["loss"] for one in read_records(config.run) if one["kind"] == "train"}


def fill_cache(config: Config) -> None:
    reader = PictureReader(load_image_encoder(config.encoder, config.adapter.kind, CPU))
    fill(config, load_base(config.base, CPU, only=frozenset({"vae", "text"})), reader, open_sources(config))


def test_a_whole_run(config: Config, request: pytest.FixtureRequest) -> None:
    """With a cache; what is exported says what it is, and is read again."""
    family = FAMILIES[request.node.callspec.params["config"]]
    fill_cache(config)
    plan = make_plan(config).to_json()
    assert (plan["trained"]["adapter"], plan["trained"]["prediction_type"]) == (f"{family} plus", "flow")
    assert train(config).is_finished
    report = export_checkpoint(config.run, None)
    assert report.portability.reasons == (f"diffusers has no adapters for {family}",)
    assert "native nodes only" in report.card.read_text()
    found = inspect_path(report.path)
    assert (found["kind"], found["base"], found["sites"]) == ("adapter", family, 3)
    with safe_open(report.path, "pt") as file:
        stated, names = file.metadata(), set(file.keys())
    spec = json.loads(stated["ipadapter.spec"])
    assert (spec["backbone"], spec["layout"], spec["negative"]) == (family, "IP-Adapter Studio", "zero_pixels")
    assert json.loads(stated["ipadapter.training"])["prediction_type"] == "flow"
    assert {f"ip_adapter.2.{name}.weight" for name in ("to_k_ip", "to_v_ip", "norm_ip_k")} < names
    kinds = [record["kind"] for record in read_records(config.run)]
    assert kinds.count("samples") == 3
    evaluate(config, report.path, config.run, images=1)
