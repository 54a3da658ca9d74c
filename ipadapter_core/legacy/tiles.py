"""A reference cut into overlapping squares, so that more of it is seen than one square (IPAdapter_plus' "tiled")."""

# B pictures, H W their size, T tiles

import math
from dataclasses import dataclass

from ..errors import BadInputError

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


def _tiling(crop: tuple[int, int], height: int, width: int) -> Tiling:
    corners = ((top, left) for top in _starts(height) for left in _starts(width))
    return Tiling(crop, height, width, tuple(corners))


def _starts(size: int) -> list[int]:
    count = math.ceil(size / TILE)
    overlap = (count * TILE - size) / (count - 1) if count > 1 else 0
    return [int(index * (TILE - overlap)) for index in range(count)]
