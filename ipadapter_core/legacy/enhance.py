"""Features of a picture put together from those of its tiles, which show more detail (IPAdapter_plus' "enhancer")."""

# R pictures, n tiles per side, g patches per side of a tile, S = 1 + g·g positions with the class token first, E feature width

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from ..errors import BadInputError

MOST_TILES = 16  # per side


def enhance(pictures: Tensor, per_side: int, ratio: float, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Features of pictures and of their tiles: two rows for a single picture, one for each of several.

    Args:
        pictures: (R, H, W, 3), 0..1.
        per_side: n, as if it was `MOST_TILES` where it is more; 1 or less cuts no tiles.
        ratio: as of `blend`.
        encode: pictures to their features, (R, S, E) or (R, E).

    Raises:
        BadInputError: a picture of fewer pixels than tiles, or features that make up no square.
    """
    whole = encode(pictures)
    if per_side <= 1:
        return whole
    count = min(per_side, MOST_TILES)
    tiles = [join_tiles(encode(cut_tiles(picture[None], count))) for picture in pictures]
    return blend(whole, torch.cat(tiles), ratio)


def cut_tiles(picture: Tensor, per_side: int) -> Tensor:
    """A picture (1, H, W, 3) as (n·n, H // n, W // n, 3), row by row; what is left over at right and bottom is dropped.

    Raises:
        BadInputError: a picture of fewer pixels than tiles.
    """
    height, width = (size // per_side for size in picture.shape[1:3])
    if not height or not width:
        raise BadInputError(
            f"a picture of {picture.shape[2]} x {picture.shape[1]} pixels cut into {per_side} x {per_side} tiles",
            expected="at least one pixel per tile",
            action="use a larger picture, or fewer tiles",
        )
    whole = picture[0, : height * per_side, : width * per_side]
    return rearrange(whole, "(i h) (j w) c -> (i j) h w c", i=per_side, j=per_side)


def join_tiles(features: Tensor) -> Tensor:
    """Features of n·n tiles, (n·n, S, E) or (n·n, E), as those of one picture: (1, S, E) or (1, E).

    The tiles' patches are laid out as one large grid, which is averaged down to the size of one tile's; class tokens
    are averaged. Pooled embeddings are treated in the same way, as if their numbers were a square picture.

    Raises:
        BadInputError: positions or numbers that make up no square.
    """
    if features.ndim == 2:
        return rearrange(_shrink(features[:, :, None]), "1 e 1 -> 1 e")
    tokens, patches = features[:, :1], features[:, 1:]
    return torch.cat((tokens.mean(dim=0, keepdim=True), _shrink(patches)), dim=1)


def blend(whole: Tensor, tiles: Tensor, ratio: float) -> Tensor:
    """Features of pictures and of their tiles, (R, …) each: mixed, or for a single picture side by side as two.

    Args:
        ratio: 1 is the whole picture only, where they are mixed.
    """
    if len(whole) == 1:
        return torch.cat((whole * ratio, tiles))
    return whole * ratio + tiles * (1 - ratio)


def _shrink(grids: Tensor) -> Tensor:
    """(n·n, g·g, E) to (1, g·g, E)."""
    count, positions, _ = grids.shape
    per_side, grid = math.isqrt(count), math.isqrt(positions)
    if grid * grid != positions:
        raise BadInputError(
            f"image features of {positions} numbers or positions, which make up no square",
            expected="a square, such as the 1024 numbers of CLIP ViT-H or the 256 patches of a 224-pixel picture",
            action="use an adapter for CLIP ViT-H, or a node that cuts no tiles",
        )
    large = rearrange(grids, "(i j) (h w) e -> 1 e (i h) (j w)", i=per_side, h=grid)
    small = functional.adaptive_avg_pool2d(large, grid)
    return rearrange(small, "1 e h w -> 1 (h w) e")
