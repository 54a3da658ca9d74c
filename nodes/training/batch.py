"""Pictures of a batch as the files that the trainer reads."""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ...ipadapter_core.errors import BadInputError


def captions_of(text: str, count: int) -> list[str]:
    """A caption for each of `count` pictures: a line each, or one line for all.

    Raises:
        BadInputError: another number of lines.
    """
    lines = [line.strip() for line in text.strip().splitlines()] or [""]
    if len(lines) not in (1, count):
        raise BadInputError(
            f"{len(lines)} lines of captions for {count} pictures",
            expected="a line for each picture, or one line for all of them",
            action="write as many lines as there are pictures",
        )
    return lines * count if len(lines) == 1 else lines


def write_batch(images: Tensor, captions: Sequence[str], folder: Path) -> None:
    """Write pictures (B, H, W, 3), 0..1, with their captions beside them; what is there already stays as it is.

    Raises:
        BadInputError: the folder holds others, which a training was begun with.
    """
    pixels = (255 * images.cpu()).round().to(torch.uint8)
    marks = []
    for number, (picture, text) in enumerate(zip(pixels, captions, strict=True), 1):
        content = hashlib.sha256(picture.numpy().tobytes() + text.encode(errors="surrogatepass"))
        marks.append(f"{number:04d}-{content.hexdigest()[:16]}")
    if folder.is_dir():
        if sorted(path.stem for path in folder.glob("*.png")) != marks:
            raise BadInputError(
                "other pictures or captions than this name was begun with",
                expected="the same ones, with which the training goes on",
                action="choose another name for another training",
            )
        return
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for picture, text, mark in zip(pixels, captions, marks, strict=True):
        Image.fromarray(picture.numpy()).save(part / f"{mark}.png")
        (part / f"{mark}.txt").write_text(text, encoding="utf-8", errors="replace")
    os.replace(part, folder)
