"""Attention masks: from any picture size to the tokens of each site's real feature map."""

# M masks, H W mask size, h w feature-map size

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BadInputError
from .rows import Place

AREA, BILINEAR = "area", "bilinear"
_MASKS_AT_ONCE = 16  # resized in float64, which takes twice the memory of a mask
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


def mask_to_tokens(
    mask: Tensor,
    height: int,
    width: int,
    resampling: str = AREA,
    place: Place | None = None,
    shown: tuple[int, int] | None = None,
) -> Tensor:
    """A mask over the cells of a feature map: (M, H, W) to (M, h·w, 1), values stay in their range.

    Area averaging, the usual `resampling`, keeps a half-frame mask a half-frame at every size; diffusers resamples
    bicubically instead (`IPAdapterMaskProcessor.downsample`), which overshoots and shifts edges. `bilinear` reads the
    four pixels around each cell's centre, as IPAdapter_plus does.

    Args:
        place: the part of the latent that the feature map shows; the mask is for all of the latent.
        shown: height and width of what it shows, in cells of the latent, where it was padded to whole patches at its
            end; the mask then goes on as it ends.
    """
    parts = torch.split(mask, _MASKS_AT_ONCE)
    if place is not None:
        down, across = (
            slice(start, start + size) for start, size in ((place.top, place.height), (place.left, place.width))
        )
        parts = tuple(resized(part, place.whole, resampling)[:, down, across] for part in parts)
    if shown is not None:
        rows, columns = (-(-size // cells) * cells - size for size, cells in zip(shown, (height, width), strict=True))
        parts = tuple(
            functional.pad(resized(part, shown, resampling)[:, None], (0, columns, 0, rows), mode="replicate")[:, 0]
            for part in parts
        )
    return torch.cat([resized(part, (height, width), resampling) for part in parts]).flatten(1)[..., None]


def resized(mask: Tensor, size: tuple[int, int], resampling: str = AREA) -> Tensor:
    """A mask (M, H, W) at another size."""
    # float64: a cell adds up to tens of thousands of pixels, one after the other
    return functional.interpolate(mask[:, None].double(), size=size, mode=resampling)[:, 0].to(mask.dtype)
