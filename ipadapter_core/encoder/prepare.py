"""A part of a picture, cut out and brought to a square, as a reference."""

# H W picture size, S side of the square

import math

import torch
from torch import Tensor

from ..box import Box
from ..errors import BadInputError, one_of
from .pixels import PixelFormat, encoder_pixels
from .sharpen import sharpen

COLOURS = {"grey": 0.5, "black": 0.0, "white": 1.0}  # of what is put beside a picture that is no square
_ROUNDING = 1e-6  # of a pixel
_COUNTS = 0.5  # of a mask, from where on it shows something


def box_of_mask(mask: Tensor) -> Box:
    """The smallest box around what a mask (H, W) shows.

    Raises:
        BadInputError: it shows nothing.
    """
    seen = mask > _COUNTS
    if not seen.any():
        raise BadInputError(
            "a mask that shows nothing of the reference",
            expected="a mask that is 1 where the reference is to be cut out",
            action="invert it, or paint what is to be cut out",
        )
    edges = []
    for axis, count in ((0, mask.shape[1]), (1, mask.shape[0])):
        places = seen.any(dim=axis).nonzero()[:, 0]
        edges.append((int(places[0]) / count, (int(places[-1]) + 1) / count))
    (left, right), (top, bottom) = edges
    return Box(left, top, right, bottom)


def widened(box: Box, margin: float) -> Box:
    """A box with room around it, as far as the picture goes.

    Args:
        margin: on each side, of the box's own width and height.
    """
    across, down = margin * (box.right - box.left), margin * (box.bottom - box.top)
    return Box(
        max(0.0, box.left - across),
        max(0.0, box.top - down),
        min(1.0, box.right + across),
        min(1.0, box.bottom + down),
    )


def part_of(picture: Tensor, box: Box) -> Tensor:
    """The pixels of (H, W, C) that a box touches; at least one."""
    height, width = picture.shape[:2]
    rows, columns = _pixels(box.top, box.bottom, height), _pixels(box.left, box.right, width)
    return picture[rows, columns]


def squared(picture: Tensor, size: int, fit: str, colour: str = "grey") -> Tensor:
    """A picture (H, W, 3), 0..1, as (S, S, 3).

    Args:
        fit: as `encoder_pixels`' `crop`.
        colour: a key of `COLOURS`, of what `pad` puts beside it.
    """
    value = one_of(colour, COLOURS, "colour")
    plain = PixelFormat(size, (value,) * 3, (1.0,) * 3)  # fills with 0, which is the mean
    return (encoder_pixels(picture[None], plain, fit) + value)[0].movedim(0, -1).clamp(0, 1)


def sharpened(picture: Tensor, amount: float) -> Tensor:
    """A picture (H, W, 3), 0..1, sharpened; 0 is not at all."""
    return picture if amount == 0 else sharpen(picture.movedim(-1, 0)[None], amount)[0].movedim(0, -1)


def shown(pixels: Tensor, pixel_format: PixelFormat) -> Tensor:
    """What an encoder sees, (B, 3, S, S) normalised, as pictures (B, S, S, 3), 0..1."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (pixel_format.mean, pixel_format.std))
    return (pixels.cpu().float() * std + mean).clamp(0, 1).movedim(1, -1)


def _pixels(low: float, high: float, count: int) -> slice:
    first = min(math.floor(low * count + _ROUNDING), count - 1)
    return slice(first, max(first + 1, math.ceil(high * count - _ROUNDING)))
