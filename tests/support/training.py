"""A whole tiny training run: pictures, models and a config for them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import parse_config
from ipadapter_trainer.loop import train

SIZE = 64
SETTINGS: dict[str, dict[str, Any]] = {
    "base": {"precision": "fp32"},
    "encoder": {"precision": "fp32"},
    "data": {"resolution": SIZE, "workers": 0},
    "train": {"steps": 4, "batch_size": 2, "log_every": 1, "trackers": []},
    "checkpoint": {"every": 2},
    "export": {"precision": "fp32"},
}


def write_pictures(folder: Path, count: int = 8, size: tuple[int, int] = (80, 72)) -> Path:
    """Coloured shapes with captions beside; each differs from the others at a glance."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[: size[1], : size[0]]
    for number in range(count):
        color = np.array([(number & 1) * 200, (number & 2) * 100, (number & 4) * 50]) + 20
        is_inside = (rows - 36) ** 2 + (columns - 20 - 5 * number) ** 2 < (10 + 2 * number) ** 2
        pixels = np.where(is_inside[..., None], color, 255 - color).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"shape {number}")
    return folder


def make_config(base: Path, encoder: Path, data: Path, output: Path, /, **changes: dict[str, Any]) -> Config:
    """A config of the smallest run; `changes` by section."""
    named = {"base": {"model": str(base)}, "encoder": {"model": str(encoder)}, "data": {"path": str(data)}}
    named["train"] = {"output": str(output)}
    sections = {*SETTINGS, *named, *changes}
    merged = {name: {**SETTINGS.get(name, {}), **named.get(name, {}), **changes.get(name, {})} for name in sections}
    return parse_config(merged, "test")


def train_with_one_thread(config: Config) -> None:
    """Target of a process of its own; more threads would add up numbers in another order."""
    torch.set_num_threads(1)
    train(config)
