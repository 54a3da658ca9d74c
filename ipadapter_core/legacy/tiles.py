"""A reference cut into overlapping squares, so that more of it is seen than one square (IPAdapter_plus' "tiled")."""

# B pictures, M masks, H W their size; h w the size of what is cut into tiles

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.functional import center_crop

from ..branch.masks import read_mask
from ..encoder.sharpen import sharpen
from ..errors import BadInputError
from .preparation import Resize, resize_mask

TILE = 256  # pixels
_SQUARE = (0.75, 1.33)  # between these ratios of height to width a picture is made square
_LONGEST = 4  # tiles
_MOST_RESIZED = 32  # tiles; all of a strip one pixel high would take gigabytes, and its middle alone is seen


@dataclass(frozen=True)
class Tiling:
    """Where the tiles of a picture lie.

    Attributes:
        crop: height and width of the middle part that is used, in pixels of the picture.
        resized: height and width that part is resized to.
        height, width: of the middle of that, which is cut into tiles.
        corners: top and left of every tile in what is cut, row by row.
    """

    crop: tuple[int, int]
    resized: tuple[int, int]
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
        return _tiling((side, side), (2 * TILE, 2 * TILE))
    if ratio > 1:
        used = min(height, width * _MOST_RESIZED)
        return _tiling((used, width), (int(TILE * used / width), TILE))
    used = min(width, height * _MOST_RESIZED)
    return _tiling((height, used), (TILE, int(TILE * used / height)))


def cut_pictures(image: Tensor, tiling: Tiling, sharpening: float, resize: Resize) -> list[Tensor]:
    """Every tile of pictures (B, H, W, 3), as (B, 256, 256, 3) each.

    Args:
        sharpening: 0..1 of what was resized, before it is cut; 0 is none.
    """
    height, width = tiling.resized
    pixels = resize(center_crop(image.movedim(-1, 1), list(tiling.crop)), width, height)
    if sharpening > 0:
        pixels = sharpen(pixels, sharpening)
    pixels = center_crop(pixels, [tiling.height, tiling.width]).movedim(1, -1)
    return [pixels[:, top : top + TILE, left : left + TILE] for top, left in tiling.corners]


def tile_masks(mask: Tensor | None, size: tuple[int, int], tiling: Tiling) -> list[Tensor]:
    """The mask within every tile and 0 elsewhere, (M, h, w) each.

    Args:
        mask: (M, H, W); None is 1 everywhere.
        size: height and width of the picture, to which the mask is brought first.
    """
    if mask is None:
        whole = torch.ones(1, tiling.height, tiling.width)
    else:
        placed = center_crop(resize_mask(read_mask(mask)[:, None], size), list(tiling.crop))
        whole = center_crop(resize_mask(placed, tiling.resized), [tiling.height, tiling.width])[:, 0]
    masks = []
    for top, left in tiling.corners:
        part = torch.zeros_like(whole)
        rectangle = (slice(None), slice(top, top + TILE), slice(left, left + TILE))
        part[rectangle] = whole[rectangle]
        masks.append(part)
    return masks


def _tiling(crop: tuple[int, int], resized: tuple[int, int]) -> Tiling:
    height, width = (min(length, _LONGEST * TILE) for length in resized)
    corners = ((top, left) for top in _starts(height) for left in _starts(width))
    return Tiling(crop, resized, height, width, tuple(corners))


def _starts(size: int) -> list[int]:
    count = math.ceil(size / TILE)
    overlap = (count * TILE - size) / (count - 1) if count > 1 else 0
    return [int(index * (TILE - overlap)) for index in range(count)]
