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
PALETTE = (
    (0, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
    (255, 255, 0),
    (255, 0, 255),
    (0, 255, 255),
    (90, 90, 90),
    (200, 120, 60),
)


def image(pixels: Tensor) -> Image.Image:
    return Image.fromarray((pixels[0].numpy() * 255).round().astype(np.uint8))


def face_picture(person: int, take: int = 0) -> Image.Image:
    """A face that the tiny pack finds by its red middle; around that is the person's colour."""
    left, top = 120 + 8 * take, 96 + 16 * take
    return image(picture((PALETTE[person % len(PALETTE)], left, top, 96), (RED, left + 36 + 8 * take, top + 36, 24)))


def two_faces() -> Image.Image:
    """A small one with the better score, and a large one."""
    return image(picture((RED, 40, 40, 30), (GREEN, 160, 160, 100)))


def write_people(folder: Path, count: int = 4, *, empty: int = 0, each: int = 1) -> Path:
    """Pictures of people with captions beside, each person's in a folder, then some without a face."""
    for number in range(count):
        for take in range(each):
            _write(folder / f"person{number}" / f"{take}.png", face_picture(number, take))
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
