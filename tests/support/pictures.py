"""Small pictures of every kind, and data sets made of them."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ipadapter_core.encoder.pixels import PixelFormat
from ipadapter_trainer.config import Config
from ipadapter_trainer.data.sample import Geometry
from ipadapter_trainer.models.image_encoder import ReferenceFormat
from ipadapter_trainer.readers.pictures import PicturePreparation

REFERENCE_FORMAT = ReferenceFormat(PixelFormat(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), "center")
GEOMETRY = Geometry(4, 8, PicturePreparation(REFERENCE_FORMAT))
"""Of SD's latents, and an encoder that takes 8 pixels."""


def gradient(height: int, width: int, number: int = 0) -> Image.Image:
    """Red rises to the right, green downwards, and blue tells one picture from another."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels[..., 2] = number * 10 % 256
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_folder(folder: Path, count: int, *, size: tuple[int, int] = (16, 16), captions: bool = True) -> list[Path]:
    """Pictures 00.png, 01.png … with "picture 0" and so on beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"{number:02}.png"
        gradient(*size, number).save(path)
        if captions:
            path.with_suffix(".txt").write_text(f"picture {number}\n")
        paths.append(path)
    return paths


def write_shard(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> None:
    """A tar file of samples by key, each of members by suffix."""
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for suffix, data in members.items():
                entry = tarfile.TarInfo(f"{key}.{suffix}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))


def write_shards(folder: Path, shards: int, per_shard: int, size: tuple[int, int] = (16, 16)) -> list[str]:
    """Shards of pictures with texts; returns the captions."""
    folder.mkdir(parents=True, exist_ok=True)
    captions = []
    for shard in range(shards):
        samples = {}
        for number in range(shard * per_shard, (shard + 1) * per_shard):
            captions.append(f"picture {number}")
            samples[f"{number:04}"] = {"png": encoded(gradient(*size, number)), "txt": captions[-1].encode()}
        write_shard(folder / f"{shard:02}.tar", samples)
    return captions


def run_config(folder: Path, path: Path | str, **sections: Mapping[str, Any]) -> Config:
    """A run over a data set with tiny pictures and no workers; sections such as data={"flip": 1.0} are laid over it."""
    values: dict[str, dict[str, Any]] = {
        "base": {"model": "base"},
        "encoder": {"model": "encoder"},
        "data": {"path": str(path), "resolution": 16, "bucket_step": 8, "workers": 0},
        "train": {"output": str(folder / "run"), "steps": 10, "batch_size": 2},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Config.model_validate_json(json.dumps(values))
