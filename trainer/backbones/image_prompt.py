"""What an adapter gives to a frozen model: all of its own computation happens before, in one forward of the adapter."""

# B samples, N image tokens, H heads, D head dim

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

KV = tuple[Tensor, Tensor]  # (B, N, H·D) each
SiteKVs = Sequence[KV | None]


class ImagePrompt(NamedTuple):
    """An adapter's output.

    Attributes:
        kv: K and V of every site, in checkpoint order; None where the image does not act.
    """

    kv: tuple[KV | None, ...]


ImageAt = Callable[[Tensor], ImagePrompt]
"""From times (B,), 0..1, to what an adapter gives at them; most give the same at all times."""
