"""Pictures that a node shows of what it does."""

import torch
from torch import Tensor

from ..ipadapter_core.branch.masks import resized

_GREY, _DARKEST = 0.5, 0.25


def shaded(image: Tensor | None, mask: Tensor) -> Tensor:
    """A picture, darker where a mask is lower.

    Args:
        image: (B, H, W, 3 or 4), 0..1, of which the first is shown; None is grey.
        mask: (1, H', W'), 0..1.

    Returns:
        (1, H, W, 3).
    """
    if image is None:
        image = torch.full((1, *mask.shape[1:], 3), _GREY)
    picture = image[:1, ..., :3].float().cpu()
    light = resized(mask.float().cpu(), (picture.shape[1], picture.shape[2]))
    return picture * (_DARKEST + (1 - _DARKEST) * light)[..., None]
