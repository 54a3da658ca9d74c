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
        norms: by site, the weights (D,) of the adapter's own norms of the picture's queries and keys; empty for those
            that have none. The image's attention then runs over the picture's own keys too.
        strengths: by site, (B, 1, 1), what such an attention is multiplied by; empty is 1. Elsewhere it is in the values.
        lora: what is added to the weights of every attention layer, those of self-attention too, as
            `unet_sites.attention_layers` numbers them; None where the model stays as it is.
        layout: of the adapter, as `AdapterSpec.layout`, where a family has several.
        gates: by site, (B or 1, H·D), what the image's attention is multiplied by at a time; empty where there are none.
        idle: by site, V (H·D,) of tokens of zeros, where a strength multiplies tokens and not values; else empty.
    """

    kv: tuple[KV | None, ...]
    norms: tuple[KV | None, ...] = ()
    strengths: tuple[Tensor | None, ...] = ()
    lora: tuple[LayerLora, ...] | None = None
    layout: str = ""
    gates: tuple[Tensor | None, ...] = ()
    idle: tuple[Tensor, ...] = ()


ImageAt = Callable[[Tensor], ImagePrompt]
"""From times (B,), 0..1, to what an adapter gives at them; most give the same at all times."""
