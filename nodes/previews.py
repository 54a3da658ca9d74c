"""Pictures that a node shows of what it does."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..ipadapter_core.branch.masks import resized
from ..ipadapter_core.encoder.prepare import squared

_GREY, _DARKEST = 0.5, 0.25
_SIDE, _SPACE, _BAR, _TEXT = 64, 8, 240, 56  # pixels of a chart's pictures, gaps, longest bar and numbers
_HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # evenly bright steps from 0 to 1
_PAPER, _INK, _FILL = (32, 32, 34), (235, 235, 235), (86, 156, 214)


def shaded(image: Tensor | None, mask: Tensor) -> Tensor:
    """A picture, darker where a mask is lower.

    Args:
        image: (B, H, W, 3), 0..1, of which the first is shown; None is grey.
        mask: (1, H', W'), 0..1.

    Returns:
        (1, H, W, 3).
    """
    if image is None:
        image = torch.full((1, *mask.shape[1:], 3), _GREY)
    picture = image[:1].cpu()
    light = resized(mask.float().cpu(), (picture.shape[1], picture.shape[2]))
    return picture * (_DARKEST + (1 - _DARKEST) * light)[..., None]


def heated(image: Tensor, heat: Tensor, blending: float) -> Tensor:
    """Pictures with maps over them, dark where they are 0 and yellow where they are 1.

    Args:
        image: (B, H, W, 3), 0..1; one serves all maps.
        heat: (B, H, W), 0..1.
        blending: of the maps, 0..1.

    Returns:
        (B, H, W, 3).
    """
    place = heat.float().cpu().clamp(0, 1) * (len(_HEAT) - 1)
    below = place.floor().clamp_max(len(_HEAT) - 2)
    colours = torch.tensor(_HEAT) / 255
    at = below.long()
    colour = torch.lerp(colours[at], colours[at + 1], (place - below)[..., None])
    picture = image.cpu().expand_as(colour)
    grey = picture.mean(dim=-1, keepdim=True).expand_as(picture)  # its own colours would be taken for those of the map
    return torch.lerp(torch.lerp(picture, grey, blending), colour, blending)


def bars(rows: Sequence[tuple[Tensor, Tensor, float]]) -> Tensor:
    """A chart of pairs: both pictures (H, W, 3), 0..1, and a bar for a number from -1 to 1, which begins at 0.

    Returns:
        (1, H, W, 3).
    """
    height = len(rows) * (_SIDE + _SPACE) + _SPACE
    sheet = Image.new("RGB", (2 * _SIDE + _BAR + _TEXT + 5 * _SPACE, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    left = 2 * _SIDE + 3 * _SPACE
    for number, (picture, other, value) in enumerate(rows):
        top = _SPACE + number * (_SIDE + _SPACE)
        for place, shown in enumerate((picture, other)):
            sheet.paste(_thumbnail(shown), (_SPACE + place * (_SIDE + _SPACE), top))
        end = left + round(_BAR * max(value, 0.0))
        pen.rectangle((left, top + _SIDE // 3, max(end, left + 1), top + 2 * _SIDE // 3), fill=_FILL)
        pen.text((max(end, left + 1) + _SPACE, top + _SIDE // 2 - 6), f"{value:.3f}", fill=_INK)
    return torch.from_numpy(np.array(sheet)).float()[None] / 255


def _thumbnail(picture: Tensor) -> Image.Image:
    small = squared(picture.cpu(), _SIDE, "pad", "black")
    return Image.fromarray((255 * small).round().to(torch.uint8).numpy())
