"""What this project's own trainer makes for transformers nobody else trains adapters for: one layout for all of them.

At a site, of T image tokens t, with the model's own queries q of the picture, normed as the model norms them and without
positions, which image tokens have none of:

    K = rms(to_k_ip t, over each head) * norm_ip_k      V = to_v_ip t
    out = attention(model's q, k, v) + strength * softmax(q K^T / sqrt(D)) V

added for the tokens of the picture alone, before the output projection of the block's attention.
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from ..operations import Operations
from .projections import CrossAttentionProjection, HeadNorm
from .row import SiteLayout, in_heads, plain_kv

LAYOUT = "IP-Adapter Studio"
_EPSILON = 1e-6
_HEAD_DIM = 128  # of Z-Image and Qwen-Image


class NormedProjection(CrossAttentionProjection):
    """The weights of a site: keys are normed over each head."""

    def __init__(self, cross_attention_dim: int, site_dim: int, ops: Operations, head_dim: int = _HEAD_DIM) -> None:
        super().__init__(cross_attention_dim, site_dim, ops)
        self.norm_ip_k = HeadNorm(head_dim)


def _kv(projection: nn.Module, tokens: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    key, value = plain_kv(projection, tokens, head_dim)
    weight = cast(NormedProjection, projection).norm_ip_k.weight
    return functional.rms_norm(in_heads(key, head_dim), weight.shape, weight.to(key), _EPSILON).flatten(-2), value


STUDIO = {
    LAYOUT: SiteLayout(site_projection=NormedProjection, site_key=str, kv=_kv, headed_projection=NormedProjection),
}
