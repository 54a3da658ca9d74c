"""What an adapter gives to a frozen model: all of its own computation happens before, in one forward of the adapter."""

# B samples, N image tokens, H heads, D head dim, R rank, I O widths of a linear layer

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

KV = tuple[Tensor, Tensor]  # (B, N, H·D) each
SiteKVs = Sequence[KV | None]
LayerLora = Mapping[str, tuple[Tensor, Tensor]]  # down (R, I) and up (O, R) of q, k, v and out
LayerLoras = Sequence[LayerLora]


class ImagePrompt(NamedTuple):
    """An adapter's output.

    Attributes:
        kv: K and V of every site, in checkpoint order; None where the image does not act.
        lora: what is added to the weights of every attention layer, those of self-attention too, as
            `unet_sites.attention_layers` numbers them; None where the model stays as it is.
    """

    kv: tuple[KV | None, ...]
    lora: tuple[LayerLora, ...] | None = None


ImageAt = Callable[[Tensor], ImagePrompt]
"""From times (B,), 0..1, to what an adapter gives at them; most give the same at all times."""
