"""A run of a face adapter in miniature: pictures with faces that the tiny pack finds, and its config."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ipadapter_trainer.config import Config

from .face_files import GREEN, RED, picture, write_pack
from .training import make_config

SIDE = 64
FACE_KINDS: dict[str, dict[str, Any]] = {
    "faceid": {"kind": "faceid", "lora_rank": 3},
    "faceid_plus": {"kind": "faceid_plus", "lora_rank": 3},
    "faceid_plus_v2": {"kind": "faceid_plus_v2", "lora_rank": 3},
    "portrait": {"kind": "portrait"},
}
READS_PICTURES = ("faceid_plus", "faceid_plus_v2")
_SHADES = ((255, 0, 0), (255, 12, 0), (255, 0, 12), (250, 8, 8), (255, 14, 14), (248, 0, 10), (255, 8, 2), (252, 3, 14))


def image(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels[0].numpy() * 255).round().astype(np.uint8))


def face_picture(number: int) -> Image.Image:
    """One person: a face of its own place, size and shade."""
    side = 30 + 2 * number
    return image(picture((_SHADES[number % len(_SHADES)], 150 - 8 * number, 120 + 6 * number, side)))


def two_faces() -> Image.Image:
    """A small one with the better score, and a large one."""
    return image(picture((RED, 40, 40, 30), (GREEN, 160, 160, 100)))


def write_people(folder: Path, count: int = 4, *, empty: int = 0, each: int = 1) -> Path:
    """Pictures of people with captions beside, each person's in a folder, then some without a face."""
    for number in range(count):
        for take in range(each):
            _write(folder / f"person{number}" / f"{take}.png", face_picture((number + 2 * take) % len(_SHADES)))
    for number in range(empty):
        _write(folder / f"nobody{number}" / "0.png", image(picture()))
    return folder


def face_config(base: Path, encoder: Path, data: Path, output: Path, /, kind: str, **changes: dict[str, Any]) -> Config:
    """A config of a small run of a face kind, with a pack beside the run."""
    pack = output.parent / "pack"
    if not pack.exists():
        write_pack(pack)
    own = {"model": str(encoder) if kind in READS_PICTURES else "", "face_model": str(pack)}
    changes["encoder"] = {**own, **changes.get("encoder", {})}
    changes["adapter"] = {**FACE_KINDS[kind], **changes.get("adapter", {})}
    return make_config(base, encoder, data, output, **changes)


def write_list(folder: Path, rows: list[dict[str, Any]], name: str = "list.jsonl") -> Path:
    (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return folder / name


def _write(path: Path, content: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content.save(path)
    path.with_suffix(".txt").write_text(path.parent.name)
