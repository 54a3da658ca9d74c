"""What is stored under which key, and in which precision."""

# C latent channels, h w latent size, E S feature width and positions, T D P text length, width and pooled width

import hashlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ..base import DTYPES
from ..config import Precision
from .store import CacheError

Kind = Literal["latents", "features", "text"]
KINDS: tuple[Kind, ...] = ("latents", "features", "text")
NO_IMAGE_KEY = "no-image"
"""Features of zero pixels: what a dropped reference is for adapters of the zero_pixels convention."""


def text_key(caption: str) -> str:
    return hashlib.blake2b(caption.encode(), digest_size=16).hexdigest()


def picture_key(digest: str, variant: int) -> str:
    """Key of one crop, flip or change of a picture whose bytes have this digest."""
    return f"{digest}:{variant}"


def stored(tensors: Mapping[str, Tensor], precision: Precision, what: str) -> dict[str, Tensor]:
    """An entry on the CPU, its floating-point parts in the cache's precision.

    Args:
        what: the picture or text it belongs to, for the message.

    Raises:
        CacheError: a value that is no finite number, or none any more in this precision.
    """
    entry = {}
    for part, tensor in tensors.items():
        cast = tensor.detach().to("cpu", DTYPES[precision] if tensor.is_floating_point() else tensor.dtype)
        if not cast.isfinite().all():
            raise _endless(part, tensor, precision, what)
        entry[part] = cast.clone(memory_format=torch.contiguous_format)
    return entry


def _endless(part: str, tensor: Tensor, precision: Precision, what: str) -> CacheError:
    if tensor.isfinite().all():
        return CacheError(
            f"{part} of {what} reaches {tensor.abs().max().item():.3g}, beyond what {precision} can hold",
            expected="values within the range of cache.precision",
            action='set cache.precision = "bf16", which has the range of fp32 in the same space',
        )
    return CacheError(
        f"{part} of {what} is NaN or infinite",
        expected="finite numbers from the model",
        action='set base.precision and encoder.precision to "bf16" or "fp32"; float16 overflows in some models',
    )
