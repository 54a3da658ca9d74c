"""Encoders at another resolution than their own: which they can read, and their positions there."""

# S side in pixels, P patches, E width

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BadInputError
from .known import PE_CORE, EncoderSpec

LARGEST_RESOLUTION = 1024  # pixels; memory grows by its fourth power


def input_size(encoder: EncoderSpec, own: int, wanted: int | None) -> int:
    """Side in pixels of the square that an encoder is to read.

    Args:
        own: the one it was made for.
        wanted: None is its own.

    Raises:
        BadInputError: no multiple of the patch, too large, or an encoder that reads its own alone.
    """
    patch = encoder.patch_size
    if wanted is None or wanted == own or _is_covered(encoder, wanted):
        return own
    if patch is None or encoder.kind == PE_CORE:
        raise _bad_resolution(encoder, wanted, f"{own} pixels, its own", own)
    if wanted % patch or not patch <= wanted <= LARGEST_RESOLUTION:
        nearest = max(1, round(min(wanted, LARGEST_RESOLUTION - patch / 2) / patch)) * patch
        raise _bad_resolution(
            encoder, wanted, f"a multiple of its patch, {patch} pixels, up to {LARGEST_RESOLUTION}", nearest
        )
    return wanted


def interpolated(positions: Tensor, side: int, num_extra: int) -> Tensor:
    """Learned positions (P + extra, E) for `side` x `side` patches, bicubic as in transformers; the first ones stay.

    Returns:
        (side² + extra, E) in float32, as rounding them to 16 bits would show in the features.
    """
    extra, patches = positions[:num_extra].float(), positions[num_extra:].float()
    own = round(len(patches) ** 0.5)
    grid = patches.T.reshape(1, -1, own, own)
    grid = functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat((extra, grid.flatten(2)[0].T))


def _is_covered(encoder: EncoderSpec, size: int) -> bool:
    """Whether an input of this size gives the encoder's own positions; the last pixels may not fill a patch."""
    if encoder.image_size is None or encoder.patch_size is None:
        return False
    return 0 <= size - encoder.image_size < encoder.patch_size


def _bad_resolution(encoder: EncoderSpec, wanted: int, expected: str, possible: int) -> BadInputError:
    return BadInputError(
        f"an encoder resolution of {wanted} pixels for {encoder.name}",
        expected=expected,
        action=f"set the resolution of the image encoder to {possible}, or choose another encoder",
    )
