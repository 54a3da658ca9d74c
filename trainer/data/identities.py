"""Embeddings of faces that come ready with the data: from a column of a table, or from NAME.npy beside a picture."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .pictures import BrokenPictureError, FilePicture, Picture

SUFFIX = ".npy"


@dataclass(frozen=True)
class WithIdentity:
    """A picture, and the embedding of its face.

    Attributes:
        ready: numbers, or the .npy file that has them; anything else is found out when it is read.
    """

    picture: Picture
    ready: Any = field(compare=False)

    @property
    def name(self) -> str:
        return self.picture.name

    @property
    def identity(self) -> str:
        return self.picture.identity

    def read(self) -> bytes:
        return self.picture.read()

    def open(self) -> BinaryIO:
        return self.picture.open()


def json_numbers(text: str) -> Any:
    """What a cell of a csv says in JSON; the text itself if it says nothing."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def ready_identity(picture: Picture) -> Tensor | None:
    """(I,), float32, as it stands; None if none comes with the picture.

    Raises:
        BrokenPictureError: it cannot be read, or is none.
    """
    ready = picture.ready if isinstance(picture, WithIdentity) else None
    if isinstance(picture, FilePicture):
        beside = picture.path.with_suffix(SUFFIX)
        ready = beside if beside.is_file() else None
    if ready is None:
        return None
    if isinstance(ready, Path):
        try:
            ready = np.load(ready, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BrokenPictureError(picture.name, f"its embedding {ready.name} cannot be read ({error})") from error
    try:
        numbers = torch.as_tensor(np.asarray(ready, dtype=np.float32)).flatten()
    except (TypeError, ValueError) as error:
        raise BrokenPictureError(picture.name, "its embedding is no list of numbers") from error
    if not numbers.isfinite().all() or not numbers.any():
        raise BrokenPictureError(picture.name, "its embedding is all zeros, or has NaN or infinite numbers")
    return numbers
