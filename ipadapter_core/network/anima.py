"""Features to image tokens as Anima's adapters do it: those of LuciferTC, and of anima_lora (MIT)."""

# B references, S feature positions, E encoder dim, Q queries, W width of the network, N image tokens, C token dim

from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ..errors import MismatchError
from ..file.spec import AdapterSpec, ResamplerSpec
from ..operations import Operations

_HEADS = 8


class CompressorLayer(nn.Module):
    """Queries read the features, then each other."""

    def __init__(self, dim: int, ff_dim: int, ops: Operations) -> None:
        super().__init__()
        self.norm_q, self.norm_kv = ops.LayerNorm(dim), ops.LayerNorm(dim)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (ops.Linear(dim, dim, bias=False) for _ in range(4))
        self.norm_self = ops.LayerNorm(dim)
        self.self_qkv, self.self_out = ops.Linear(dim, 3 * dim, bias=False), ops.Linear(dim, dim, bias=False)
        self.norm_ffn = ops.LayerNorm(dim)
        self.ffn = _feed_forward(dim, ff_dim, ops)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """(B, Q, W) and (B, S, W) to (B, Q, W)."""
        features = self.norm_kv(features)
        asking = self.q_proj(self.norm_q(queries))
        queries = queries + self.out_proj(_attend(asking, self.k_proj(features), self.v_proj(features), _HEADS))
        queries = queries + self.self_out(_attend_within(self.self_qkv(self.norm_self(queries))))
        return cast(Tensor, queries + self.ffn(self.norm_ffn(queries)))


class Compressor(nn.Module):
    """Learned queries in place of one token per patch."""

    def __init__(self, spec: ResamplerSpec, ops: Operations) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(spec.num_queries, spec.dim) / spec.dim**0.5)
        self.layers = nn.ModuleList(CompressorLayer(spec.dim, spec.ff_dim, ops) for _ in range(spec.depth))
        self.final_norm = ops.LayerNorm(spec.dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, S, W) to (B, Q, W)."""
        queries = self.queries.to(features).expand(len(features), -1, -1)
        for layer in self.layers:
            queries = layer(queries, features)
        return cast(Tensor, self.final_norm(queries))


class SelfAttention(nn.Module):
    """Tokens read each other once."""

    def __init__(self, dim: int, ops: Operations) -> None:
        super().__init__()
        self.norm1, self.norm2 = ops.LayerNorm(dim), ops.LayerNorm(dim)
        self.qkv, self.out_proj = ops.Linear(dim, 3 * dim, bias=False), ops.Linear(dim, dim, bias=False)
        self.ffn = _feed_forward(dim, 4 * dim, ops)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, C) to the same."""
        tokens = tokens + self.out_proj(_attend_within(self.qkv(self.norm1(tokens))))
        return cast(Tensor, tokens + self.ffn(self.norm2(tokens)))


class PatchTokens(nn.Module):
    """The encoder's patches are the tokens, through whatever of LuciferTC's optional parts a file has.

    No picture is features of zeros; it becomes the file's tokens for it, else tokens of zeros, which add nothing.
    """

    def __init__(self, spec: AdapterSpec, ops: Operations) -> None:
        super().__init__()
        width = spec.cross_attention_dim
        if "siglip_norm" in spec.parts:
            self.siglip_norm = ops.LayerNorm(width)
        if spec.resampler is not None:
            self.siglip_compressor = Compressor(spec.resampler, ops)
        if "ip_self_attn" in spec.parts:
            self.ip_self_attn = SelfAttention(width, ops)
        if spec.no_image:
            self.null_tokens = nn.Parameter(torch.empty(spec.no_image))

    def forward(self, features: Tensor) -> Tensor:
        """(B, S, E) to (B, N, C). Raises MismatchError where the file's tokens for no image are not as many."""
        tokens = features
        for part in self.children():
            tokens = part(tokens)
        nothing = torch.zeros_like(tokens)
        if (given := getattr(self, "null_tokens", None)) is not None:
            if given.ndim > 1 and given.shape[-2] not in (1, tokens.shape[1]):
                raise MismatchError(
                    f"{tokens.shape[1]} image tokens, for an adapter with {given.shape[-2]} tokens that stand for no image",
                    expected="pictures read at the size of the adapter's training",
                    action="set the image encoder's resolution back to the adapter's own",
                )
            nothing = given.to(tokens).expand_as(tokens)
        return torch.where((features == 0).all(dim=2, keepdim=True).all(dim=1, keepdim=True), nothing, tokens)


class PackedAttention(nn.Module):
    """`nn.MultiheadAttention` by its names, with weights cast when used."""

    def __init__(self, dim: int, heads: int, ops: Operations) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * dim, dim)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = ops.Linear(dim, dim)

    def forward(self, asking: Tensor, read: Tensor) -> Tensor:
        """(B, Q, W) and (B, S, W) to (B, Q, W)."""
        weights, biases = (part.to(asking).chunk(3) for part in (self.in_proj_weight, self.in_proj_bias))
        q, k, v = map(functional.linear, (asking, read, read), weights, biases)
        return cast(Tensor, self.out_proj(_attend(q, k, v, self.heads)))


class PerceiverBlock(nn.Module):
    """Queries read the features, then each other."""

    def __init__(self, spec: ResamplerSpec, ops: Operations) -> None:
        super().__init__()
        self.q_norm_x, self.kv_norm_x = ops.LayerNorm(spec.dim), ops.LayerNorm(spec.dim)
        self.xattn = PackedAttention(spec.dim, spec.num_heads, ops)
        self.norm_s = ops.LayerNorm(spec.dim)
        self.sattn = PackedAttention(spec.dim, spec.num_heads, ops)
        self.norm_f = ops.LayerNorm(spec.dim)
        self.ffn = _feed_forward(spec.dim, spec.ff_dim, ops)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """(B, Q, W) and (B, S, W) to (B, Q, W)."""
        queries = queries + self.xattn(self.q_norm_x(queries), self.kv_norm_x(features))
        asking = self.norm_s(queries)
        queries = queries + self.sattn(asking, asking)
        return cast(Tensor, queries + self.ffn(self.norm_f(queries)))


class Perceiver(nn.Module):
    """A fixed number of learned queries reads the features."""

    def __init__(self, spec: ResamplerSpec, image_dim: int, token_dim: int, ops: Operations) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, spec.num_queries, spec.dim) / spec.dim**0.5)
        self.kv_proj = ops.Linear(image_dim, spec.dim)
        self.blocks = nn.ModuleList(PerceiverBlock(spec, ops) for _ in range(spec.depth))
        self.out_norm = ops.LayerNorm(spec.dim)
        self.out = ops.Linear(spec.dim, token_dim)

    def forward(self, features: Tensor) -> Tensor:
        """(B, S, E) to (B, N, C)."""
        features = self.kv_proj(features)
        queries = self.queries.to(features).expand(len(features), -1, -1)
        for block in self.blocks:
            queries = block(queries, features)
        return cast(Tensor, self.out(self.out_norm(queries)))


class PerceiverTokens(nn.Module):
    """`Perceiver` over features from which those of a mean picture are taken, where the file has them."""

    def __init__(self, spec: AdapterSpec, ops: Operations) -> None:
        super().__init__()
        assert spec.resampler is not None
        if "ip_centroid" in spec.parts:
            self.ip_centroid = nn.Parameter(torch.empty(spec.image_dim))
        self.resampler = Perceiver(spec.resampler, spec.image_dim, spec.cross_attention_dim, ops)

    def forward(self, features: Tensor) -> Tensor:
        """(B, S, E) to (B, N, C)."""
        mean = getattr(self, "ip_centroid", None)
        return cast(Tensor, self.resampler(features if mean is None else features - mean.to(features)))


def _feed_forward(dim: int, ff_dim: int, ops: Operations) -> nn.Sequential:
    return nn.Sequential(ops.Linear(dim, ff_dim), nn.GELU(), ops.Linear(ff_dim, dim))


def _attend_within(qkv: Tensor) -> Tensor:
    """(B, N, 3·W) to (B, N, W)."""
    q, k, v = qkv.chunk(3, dim=-1)
    return _attend(q, k, v, _HEADS)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """(B, Q, W) and (B, S, W) to (B, Q, W)."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    return rearrange(functional.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
