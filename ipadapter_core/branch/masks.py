"""Attention masks: from any picture size to the tokens of each site's real feature map."""

# M masks, H W mask size, h w feature-map size

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BadInputError

AREA, BILINEAR = "area", "bilinear"
_ROUNDING = 1e-4  # outside 0..1: what an antialiased resize adds


def read_mask(mask: Tensor) -> Tensor:
    """A MASK as (M, H, W) float32 on the CPU, any finite values.

    Raises:
        BadInputError: another rank, an empty side, or NaN.
    """
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3 or 0 in mask.shape:
        raise BadInputError(
            f"a mask of shape {list(mask.shape)}",
            expected="a MASK of shape [batch, height, width] or [height, width]",
            action="connect a MASK output, not an image or a latent",
        )
    mask = mask.detach().to("cpu", torch.float32)
    if not mask.isfinite().all():
        raise BadInputError(
            "a mask with NaN or infinite values", expected="numbers from 0 to 1", action="check the node that made it"
        )
    return mask


def check_mask(mask: Tensor) -> Tensor:
    """A MASK as (M, H, W) float32 on the CPU, values 0..1; what rounding left outside is clamped.

    Raises:
        BadInputError: as `read_mask`, or values outside 0..1.
    """
    steps = 2 * torch.finfo(mask.dtype).eps if mask.is_floating_point() else 0.0
    margin = max(_ROUNDING, steps)
    mask = read_mask(mask)
    low, high = mask.min().item(), mask.max().item()
    if low < -margin or high > 1 + margin:
        raise BadInputError(
            f"a mask with values from {low:.7g} to {high:.7g}",
            expected="values from 0 (image prompt off) to 1 (fully on)",
            action="rescale or clamp the mask before connecting it",
        )
    return mask if low >= 0 and high <= 1 else mask.clamp(0, 1)


def mask_to_tokens(mask: Tensor, height: int, width: int, resampling: str = AREA) -> Tensor:
    """A mask over the cells of a feature map: (M, H, W) to (M, h·w, 1), values stay in their range.

    Area averaging, the usual `resampling`, keeps a half-frame mask a half-frame at every size; diffusers resamples
    bicubically instead (`IPAdapterMaskProcessor.downsample`), which overshoots and shifts edges. `bilinear` reads the
    four pixels around each cell's centre, as IPAdapter_plus does.
    """
    # float64: a cell adds up to tens of thousands of pixels, one after the other
    cells = functional.interpolate(mask[:, None].double(), size=(height, width), mode=resampling)
    return cells.to(mask.dtype).flatten(1)[..., None]


def mask_for_batch(tokens: Tensor, batch: int, groups: int, frames: Sequence[int] | None = None) -> Tensor:
    """One mask per latent of every conditioning group: (M, L, 1) to (1 or G·B, L, 1).

    A single mask serves all; of several, latent i takes mask i and further latents the last one.

    Args:
        frames: number of each latent of a group, where they are not 0, 1, 2 …
    """
    if len(tokens) == 1:
        return tokens
    numbers = torch.arange(batch // groups) if frames is None else torch.tensor(frames)
    picked = numbers.to(tokens.device).clamp_max(len(tokens) - 1)
    return tokens[picked].repeat(groups, 1, 1)
