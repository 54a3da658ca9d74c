"""Train IP-Adapter: a real trainer as its child, on tiny models: started, watched, stopped, resumed, finished, used."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host, encoders
from support.recipe_models import write_small_base
from support.training import write_pictures

BASE, ENCODER = "tiny train/sd15/", "train encoder/"
ASKED: dict[str, Any] = {
    "folder": "train pictures",
    "base_model": BASE,
    "image_encoder": ENCODER,
    "kind": "base",
    "steps": 3,
    "resolution": 64,
    "learning_rate": 0.0,
    "seed": 0,
}


@pytest.fixture(scope="module")
def world(base_directory: Path) -> Iterator[Path]:
    """ComfyUI with a base model, an image encoder and pictures."""
    base = base_directory / "models" / "diffusers" / BASE
    base.mkdir(parents=True)
    write_small_base(base)
    encoders.write_folder("clip", base_directory / "models" / "clip_vision" / ENCODER)
    write_pictures(base_directory / "input" / "train pictures", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield base_directory


def run_folder(world: Path, name: str) -> Path:
    return world / "output" / "ipadapter_runs" / name


def steps_of(world: Path, name: str) -> list[int]:
    lines = (run_folder(world, name) / "run" / "metrics.jsonl").read_text().splitlines()
    return [record["step"] for record in map(json.loads, lines) if record["kind"] == "train"]


def test_a_folder_is_trained_on_and_the_file_is_listed_and_draws(world: Path) -> None:
    start = time.time()
    adapter, curve, samples = comfy_host.call("IPATrain", name="first", **ASKED)
    print("took", time.time() - start)
    assert steps_of(world, "first") == [1, 2, 3]
