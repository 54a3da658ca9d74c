"""Perceiver resampler of the "plus" adapters (tencent-ailab/IP-Adapter, ip_adapter/resampler.py, Apache-2.0).

The residual stream of published SDXL weights exceeds float16's range: callers pass float32 features.
"""

# B references, S feature positions, E encoder dim, Q queries, W resampler width, H heads, D head dim, C cross-attn dim

from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ..file.spec import ResamplerSpec
from ..operations import Operations


class PerceiverAttention(nn.Module):
    """Latents attend to the features and to themselves."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, ops: Operations) -> None:
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * head_dim
        self.norm1 = ops.LayerNorm(dim)
        self.norm2 = ops.LayerNorm(dim)
        self.to_q = ops.Linear(dim, inner, bias=False)
        self.to_kv = ops.Linear(dim, 2 * inner, bias=False)
        self.to_out = ops.Linear(inner, dim, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        """(B, S, W) and (B, Q, W) to (B, Q, W)."""
        return self.attend(self.norm1(features), self.norm2(latents))

    def attend(self, features: Tensor, latents: Tensor) -> Tensor:
        """The same, of what is normed already."""
        k, v = self.to_kv(torch.cat((features, latents), dim=1)).chunk(2, dim=-1)
        q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=self.num_heads) for x in (self.to_q(latents), k, v))
        out = functional.scaled_dot_product_attention(q, k, v)
        return cast(Tensor, self.to_out(rearrange(out, "b h n d -> b n (h d)")))


class Resampler(nn.Module):
    """A fixed number of learned queries reads a sequence of image features."""

    def __init__(self, spec: ResamplerSpec, image_dim: int, cross_attention_dim: int, ops: Operations) -> None:
        super().__init__()
        self.spec = spec
        self.latents = nn.Parameter(torch.randn(1, spec.num_queries, spec.dim) / spec.dim**0.5)
        self.proj_in = ops.Linear(image_dim, spec.dim)
        self.proj_out = ops.Linear(spec.dim, cross_attention_dim)
        self.norm_out = ops.LayerNorm(cross_attention_dim)
        self.layers = perceiver_layers(spec, ops)
        if spec.max_positions is not None:
            self.pos_emb = ops.Embedding(spec.max_positions, image_dim)
        if spec.num_mean_pooled:
            self.to_latents_from_mean_pooled_seq = nn.Sequential(
                ops.LayerNorm(spec.dim), ops.Linear(spec.dim, spec.dim * spec.num_mean_pooled)
            )

    def forward(self, image_features: Tensor) -> Tensor:
        """(B, S, E) to (B, N, C) with N = pooled + learned queries."""
        if self.spec.max_positions is not None:
            positions = torch.arange(image_features.shape[1], device=image_features.device)
            image_features = image_features + self.pos_emb(positions).to(image_features.dtype)
        features = self.proj_in(image_features)  # (B, S, W)
        latents = self.latents.to(features).expand(features.shape[0], -1, -1)  # (B, Q, W)
        if self.spec.num_mean_pooled:
            pooled = self.to_latents_from_mean_pooled_seq(features.mean(dim=1))
            pooled = rearrange(pooled, "b (n w) -> b n w", n=self.spec.num_mean_pooled)
            latents = torch.cat((pooled, latents), dim=1)
        return cast(Tensor, self.norm_out(self.proj_out(perceive(self.layers, features, latents))))


def perceive(layers: nn.ModuleList, features: Tensor, latents: Tensor) -> Tensor:
    """Let latents (B, Q, W) read features (B, S, W) layer by layer; (B, Q, W)."""
    for attention, feed_forward in cast("list[tuple[nn.Module, nn.Module]]", layers):
        latents = latents + attention(features, latents)
        latents = latents + feed_forward(latents)
    return latents


def perceiver_layers(spec: ResamplerSpec, ops: Operations) -> nn.ModuleList:
    """Attention and feed-forward `depth` times, under the published names."""
    return nn.ModuleList(nn.ModuleList(attention_and_feed_forward(spec, ops)) for _ in range(spec.depth))


def attention_and_feed_forward(spec: ResamplerSpec, ops: Operations) -> tuple[PerceiverAttention, nn.Sequential]:
    """The two parts of a layer, under the published names."""
    feed_forward = nn.Sequential(
        ops.LayerNorm(spec.dim),
        ops.Linear(spec.dim, spec.ff_dim, bias=False),
        nn.GELU(),
        ops.Linear(spec.ff_dim, spec.dim, bias=False),
    )
    return PerceiverAttention(spec.dim, spec.num_heads, spec.head_dim, ops), feed_forward
