"""What tests ask of runs that have been trained, and the cache of one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.file.container import read_tensors
from ipadapter_trainer.cache.fill import fill
from ipadapter_trainer.config import Config
from ipadapter_trainer.data.sources import open_sources
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.readers.opening import open_reader
from ipadapter_trainer.state import ADAPTER, find_checkpoints

CPU = torch.device("cpu")
WATCHED = {"every": 2, "images": 2, "timesteps": [500], "sample_every": 2, "samples": 1, "sampler_steps": 2}
"""Validation and pictures at every second step, little of each."""


def cached(folder: Path) -> dict[str, dict[str, Any]]:
    """What a config has with a cache in a folder."""
    return {"cache": {"path": str(folder / "cache"), "precision": "fp32"}}


def fill_cache(config: Config, device: torch.device = CPU) -> None:
    base = load_base(config.base, device, only=frozenset({"vae", "text"}))
    fill(config, base, open_reader(config, device), open_sources(config))


def losses(config: Config) -> list[float]:
    return [record["loss"] for record in read_records(config.run) if record["kind"] == "train"]


def weights(config: Config) -> dict[str, torch.Tensor]:
    """Of the last checkpoint."""
    return dict(read_tensors(find_checkpoints(config.run)[-1] / ADAPTER).tensors)


def assert_goes_on_exactly(config: Callable[..., Config], folder: Path, *, is_cached: bool) -> None:
    """A run that stops and goes on is the uninterrupted one, bit for bit; with a cache its named parts are read, and the
    losses are what they are without.

    Args:
        config: of a run of four steps, by its name and changed sections.
    """
    more = cached(folder) if is_cached else {}
    if is_cached:
        fill_cache(config("whole", **more))
    train(config("whole", **more))
    for steps in (2, 4):
        train(config("part", train={"steps": steps, "batch_size": 2, "log_every": 1, "trackers": []}, **more))
    whole, part = config("whole"), config("part")
    assert losses(whole) == losses(part)
    given, wanted = weights(part), weights(whole)
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[name], wanted[name]) for name in wanted)
    if is_cached:
        train(config("encoded"))
        assert losses(config("encoded")) == pytest.approx(losses(whole), rel=1e-4)
