"""Entries in the form they are stored in."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import Precision
from ..models.base import DTYPES
from .store import CacheError

_EXACT = frozenset({"sizes"})  # pixels beyond 2048 are not exact in 16 bits


def stored(tensors: Mapping[str, Tensor], precision: Precision, what: str) -> dict[str, Tensor]:
    """An entry on the CPU and in the cache's precision.

    Args:
        what: the picture or text it belongs to, for the message.

    Raises:
        CacheError: a value that is no finite number, or none any more in this precision.
    """
    entry = {}
    for part, tensor in tensors.items():
        cast = tensor.detach().to("cpu", tensor.dtype if part in _EXACT else DTYPES[precision])
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
