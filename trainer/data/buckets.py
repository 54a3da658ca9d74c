"""Aspect-ratio buckets: which size a picture is trained at, and how it is resized and cropped to it."""

from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from ..config import DataConfig
from .pictures import Size, as_tensor

Box = tuple[float, float, float, float]


def bucket_sizes(data: DataConfig, resolution: int | None = None) -> tuple[Size, ...]:
    """Every size a target may have: the square, or with buckets sizes of about its area, from 1:2 to 2:1.

    Args:
        resolution: one of several; `data.resolution` if not given.
    """
    side = data.resolution if resolution is None else resolution
    if not data.buckets:
        return ((side, side),)
    from diffusers.training_utils import generate_aspect_ratio_buckets

    return tuple(generate_aspect_ratio_buckets(side, divisibility=data.bucket_step))


def nearest_bucket(size: Size, buckets: tuple[Size, ...]) -> Size:
    """The bucket whose aspect ratio is nearest."""
    from diffusers.training_utils import find_nearest_bucket

    return buckets[find_nearest_bucket(*size, buckets)]


@dataclass(frozen=True)
class Placement:
    """How a picture lies in its bucket.

    Attributes:
        original: the picture's size.
        resized: its size after resizing, which covers the bucket.
        top, left: corner of the bucket in the resized picture.
        target: the bucket.
        flip: the picture is mirrored first; top and left are then those in the mirrored picture.
    """

    original: Size
    resized: Size
    top: int
    left: int
    target: Size
    flip: bool

    @property
    def sizes(self) -> Tensor:
        """SDXL's six numbers (6,): original height, width, crop top, left, target height, width.

        Whole numbers, which a cache in 16-bit floats must not round.
        """
        return torch.tensor([*self.original, self.top, self.left, *self.target])

    def apply(self, image: Image.Image, resample: Image.Resampling) -> Tensor:
        """The part of a picture that is trained on, (height, width, channels) uint8.

        A picture of another size than the original (a mask) is taken for the same view.
        """
        if self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        # only the part that is kept is resized: of a long strip the whole would take gigabytes
        down, right = image.height / self.resized[0], image.width / self.resized[1]
        bottom, end = self.top + self.target[0], self.left + self.target[1]
        box: Box = (
            self.left * right,
            self.top * down,
            min(end * right, image.width),
            min(bottom * down, image.height),
        )
        return as_tensor(image.resize((self.target[1], self.target[0]), resample, box))


class Framing(Protocol):
    """Which part of a picture is kept, and how likely it is mirrored; a `DataConfig` says so."""

    @property
    def crop(self) -> str: ...

    @property
    def flip(self) -> float: ...


@dataclass(frozen=True)
class Centered:
    """The middle as it is: nothing is left to chance."""

    crop: str = "center"
    flip: float = 0.0


def place(original: Size, target: Size, framing: Framing, generator: torch.Generator) -> Placement:
    """Resize to cover the target, keeping the aspect ratio, and choose what is cut off and whether it is mirrored."""
    scale = max(target[0] / original[0], target[1] / original[1])
    resized = (max(target[0], round(original[0] * scale)), max(target[1], round(original[1] * scale)))
    spare = (resized[0] - target[0], resized[1] - target[1])
    flip = torch.rand((), generator=generator).item() < framing.flip
    if framing.crop == "center":
        top, left = spare[0] // 2, spare[1] // 2
    else:
        top, left = (int(torch.randint(0, room + 1, (), generator=generator)) for room in spare)
    return Placement(original, resized, top, left, target, flip)
