"""Train IP-Adapter in this process, on tiny models, its trainer a real child: what the tests of the node share."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import comfy_host, encoders
from .recipe_models import write_small_base
from .training import write_pictures

BASE, ENCODER, PICTURES = "tiny train/sd15/", "train encoder/", "train pictures"
MANY = 100_000  # steps, of which few are done
ASKED: dict[str, Any] = {
    "folder": PICTURES,
    "base_model": BASE,
    "image_encoder": ENCODER,
    "kind": "base",
    "steps": 3,
    "resolution": 64,
    "learning_rate": 0.0,
    "seed": 0,
}
LONGEST = 300  # seconds until a trainer on a busy machine has done its first steps


def training_world(base_directory: Path) -> Iterator[Path]:
    """For a fixture: ComfyUI with a base model, an image encoder and pictures."""
    models, input_folder = base_directory / "models", base_directory / "input"
    (models / "diffusers" / BASE).mkdir(parents=True)
    write_small_base(models / "diffusers" / BASE)
    encoders.write_folder("clip", models / "clip_vision" / ENCODER)
    write_pictures(input_folder / PICTURES, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield base_directory
    for folder in (models / "diffusers" / "tiny train", models / "clip_vision" / ENCODER, input_folder / PICTURES):
        shutil.rmtree(folder)
    shutil.rmtree(base_directory / "output" / "ipadapter_runs", ignore_errors=True)


def folder_of(world: Path, name: str) -> Path:
    return world / "output" / "ipadapter_runs" / name


def train(name: str, **changes: Any) -> tuple[Any, ...]:
    return comfy_host.call("IPATrain", name=name, **ASKED | changes)


def records(world: Path, name: str) -> list[dict[str, Any]]:
    file = folder_of(world, name) / "run" / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def steps_of(world: Path, name: str) -> list[int]:
    return [record["step"] for record in records(world, name) if record["kind"] == "train"]


def once_it_steps(world: Path, name: str, do: Callable[[], object]) -> threading.Thread:
    """Do something from another thread when a run has written its first numbers."""

    def wait() -> None:
        deadline = time.monotonic() + LONGEST
        while not steps_of(world, name) and time.monotonic() < deadline:
            time.sleep(0.05)
        do()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def trainers(name: str) -> list[int]:
    """Processes that train under a name."""
    found = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    lines = [line for line in found if "ipadapter_trainer" in line and f"/{name}/" in line]
    return [int(line.split()[0]) for line in lines]


def python_without(tmp_path: Path, script: str) -> str:
    """A program in place of Python, which starts it in another way."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\n{script.format(python=sys.executable)} "$@"\n')
    program.chmod(0o755)
    return str(program)
