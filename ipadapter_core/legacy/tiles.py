"""A reference cut into overlapping squares, so that more of it is seen than one square (IPAdapter_plus' "tiled")."""

# B pictures, M masks, H W their size; h w the size of the part that is cut

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..branch.masks import read_mask
from ..encoder.pixels import middle
from ..errors import BadInputError
from .preparation import Resize
from .sharpen import sharpen

TILE = 256  # pixels
_SQUARE = (0.75, 1.33)  # between these ratios of height to width a picture is made square
_LONGEST = 4  # tiles


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of a picture lie.

    Attributes:
        crop: height and width of the middle part that is used, in pixels of the picture.
        height, width: what that part is resized to.
        corners: top and left of every tile in the resized part, row by row.
    """

    crop: tuple[int, int]
    height: int
    width: int
    corners: tuple[tuple[int, int], ...]


def tile_picture(height: int, width: int) -> Tiling:
    """How a picture of this size is cut: a nearly square one into 2 x 2, another along its longer side.

    Raises:
        BadInputError: an empty picture.
    """
    if height < 1 or width < 1:
        raise BadInputError(f"a picture of {width} x {height} pixels", expected="a picture", action="connect one")
    ratio = height / width
    if _SQUARE[0] < ratio < _SQUARE[1]:
        side = min(height, width)
        return _tiling((side, side), 2 * TILE, 2 * TILE)
    if ratio > 1:
        used = min(height, width * _LONGEST)
        return _tiling((used, width), int(TILE * used / width), TILE)
    used = min(width, height * _LONGEST)
    return _tiling((height, used), TILE, int(TILE * used / height))


def cut_pictures(image: Tensor, tiling: Tiling, sharpening: float, resize: Resize) -> list[Tensor]:
    """Every tile of pictures (B, H, W, 3), as (B, 256, 256, 3) each.

    Args:
        sharpening: 0..1; 0 is none.
    """
    pixels = resize(middle(image.movedim(-1, 1), *tiling.crop), tiling.width, tiling.height)
    tiles = [pixels[..., top : top + TILE, left : left + TILE] for top, left in tiling.corners]
    return [(sharpen(tile, sharpening) if sharpening > 0 else tile).movedim(1, -1) for tile in tiles]


def tile_masks(mask: Tensor | None, size: tuple[int, int], tiling: Tiling) -> list[Tensor]:
    """The mask within every tile and 0 elsewhere, (M, h, w) each.

    Args:
        mask: (M, H, W); None is 1 everywhere.
        size: height and width of the picture, to which the mask is brought first.
    """
    if mask is None:
        whole = torch.ones(1, tiling.height, tiling.width)
    else:
        placed = functional.interpolate(read_mask(mask)[:, None], size=size, mode="bicubic")
        target = (tiling.height, tiling.width)
        whole = functional.interpolate(middle(placed, *tiling.crop), size=target, mode="bicubic")[:, 0]
    masks = []
    for top, left in tiling.corners:
        part = torch.zeros_like(whole)
        rectangle = (slice(None), slice(top, top + TILE), slice(left, left + TILE))
        part[rectangle] = whole[rectangle]
        masks.append(part)
    return masks


def _tiling(crop: tuple[int, int], height: int, width: int) -> Tiling:
    corners = ((top, left) for top in _starts(height) for left in _starts(width))
    return Tiling(crop, height, width, tuple(corners))


def _starts(size: int) -> list[int]:
    count = math.ceil(size / TILE)
    overlap = (count * TILE - size) / (count - 1) if count > 1 else 0
    return [int(index * (TILE - overlap)) for index in range(count)]
