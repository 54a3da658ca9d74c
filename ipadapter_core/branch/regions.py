"""Regions of a picture as masks, by name, box or another mask, with soft edges."""

# H W picture size

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from ..box import Box
from ..errors import one_of

_THIRD = 1 / 3


REGIONS: Mapping[str, Box] = {
    "everywhere": Box(),
    "left": Box(right=0.5),
    "right": Box(left=0.5),
    "top": Box(bottom=0.5),
    "bottom": Box(top=0.5),
    "left third": Box(right=_THIRD),
    "middle third": Box(left=_THIRD, right=2 * _THIRD),
    "right third": Box(left=2 * _THIRD),
    "upper third": Box(bottom=_THIRD),
    "central third": Box(top=_THIRD, bottom=2 * _THIRD),
    "lower third": Box(top=2 * _THIRD),
}


def region_mask(box: Box, height: int, width: int, feather: float = 0.0) -> Tensor:
    """1 in the box and 0 outside, (H, W).

    An edge is as wide as `feather`, with one half on it, so that neighbours add up to 1; the picture's own edges are
    hard. Without a feather a pixel on an edge has the part of it that lies inside.

    Args:
        feather: width of an edge, of the picture's shorter side.
    """
    pixels = max(feather * min(height, width), 1.0)
    rows = _profile(box.top, box.bottom, height, pixels / height)
    columns = _profile(box.left, box.right, width, pixels / width)
    return rows[:, None] * columns[None]


def softened(mask: Tensor, feather: float) -> Tensor:
    """A mask (M, H, W) whose edges are as wide as `feather`, of its shorter side; values stay in their range."""
    reach = round(feather * min(mask.shape[-2:]) / 2)
    if not reach:
        return mask
    for axis, size in ((-1, (1, 2 * reach + 1)), (-2, (2 * reach + 1, 1))):
        around = [reach, reach, 0, 0] if axis == -1 else [0, 0, reach, reach]
        padded = functional.pad(mask[:, None].double(), around, mode="replicate")
        mask = functional.avg_pool2d(padded, size, stride=1)[:, 0].to(mask.dtype)
    return mask


def named_box(region: str) -> Box:
    """The box of a name. Raises BadInputError for another name."""
    return one_of(region, REGIONS, "region")


def _profile(low: float, high: float, count: int, edge: float) -> Tensor:
    centres = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    inside = torch.ones(count, dtype=torch.float64)
    if low > 0:
        inside = inside * ((centres - low) / edge + 0.5).clamp(0, 1)
    if high < 1:
        inside = inside * ((high - centres) / edge + 0.5).clamp(0, 1)
    return inside.float()
