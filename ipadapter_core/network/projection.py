"""Image features to image tokens: the linear and the MLP projection, under their published key names."""

# B references, S feature positions, E encoder dim, N image tokens, C cross-attention dim

from typing import cast

from einops import rearrange
from torch import Tensor, nn

from ..file.spec import AdapterSpec, Projection
from ..operations import Operations
from .anima import PatchTokens, PerceiverTokens
from .face_projection import IdentityAndFaceProjection, IdentityProjection
from .resampler import Resampler
from .timed_resampler import TimedResampler
from .two_layers import TwoLayerProjection


class ImageProjection(nn.Module):
    """Linear layer and LayerNorm over the pooled embedding (arXiv 2308.06721, section 3.2; the "base" adapters)."""

    def __init__(self, image_dim: int, cross_attention_dim: int, num_tokens: int, ops: Operations) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.proj = ops.Linear(image_dim, num_tokens * cross_attention_dim)
        self.norm = ops.LayerNorm(cross_attention_dim)

    def forward(self, image_embeds: Tensor) -> Tensor:
        """(B, E) to (B, N, C)."""
        tokens = rearrange(self.proj(image_embeds), "b (n c) -> b n c", n=self.num_tokens)
        return cast(Tensor, self.norm(tokens))


class FullProjection(nn.Module):
    """MLP over every feature position (full-face; `MLPProjModel` of tencent-ailab/IP-Adapter)."""

    def __init__(self, image_dim: int, cross_attention_dim: int, ops: Operations) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            ops.Linear(image_dim, image_dim),
            nn.GELU(),
            ops.Linear(image_dim, cross_attention_dim),
            ops.LayerNorm(cross_attention_dim),
        )

    def forward(self, image_features: Tensor) -> Tensor:
        """(B, S, E) to (B, S, C)."""
        return cast(Tensor, self.proj(image_features))


def build_projection(spec: AdapterSpec, ops: Operations) -> nn.Module:
    """The projection module a spec describes, with its published key names and uninitialised weights."""
    if spec.projection is Projection.LINEAR:
        assert spec.num_tokens is not None
        return ImageProjection(spec.image_dim, spec.cross_attention_dim, spec.num_tokens, ops)
    if spec.projection is Projection.TWO_LAYERS:
        assert spec.num_tokens is not None
        assert spec.hidden_dim is not None
        return TwoLayerProjection(spec.image_dim, spec.hidden_dim, spec.cross_attention_dim, spec.num_tokens, ops)
    if spec.projection is Projection.MLP:
        return FullProjection(spec.image_dim, spec.cross_attention_dim, ops)
    if spec.projection is Projection.RESAMPLER:
        assert spec.resampler is not None
        return Resampler(spec.resampler, spec.image_dim, spec.cross_attention_dim, ops)
    if spec.projection is Projection.TIMED_RESAMPLER:
        assert spec.resampler is not None
        return TimedResampler(spec.resampler, spec.image_dim, spec.cross_attention_dim, ops)
    if spec.projection is Projection.PATCHES:
        return PatchTokens(spec, ops)
    if spec.projection is Projection.PERCEIVER:
        return PerceiverTokens(spec, ops)
    assert spec.face is not None
    assert spec.num_tokens is not None
    if spec.projection is Projection.IDENTITY:
        return IdentityProjection(spec.face, spec.num_tokens, ops)
    if spec.projection is Projection.IDENTITY_AND_FACE:
        assert spec.resampler is not None
        return IdentityAndFaceProjection(spec.face, spec.resampler, spec.image_dim, spec.num_tokens, ops)
    raise AssertionError(f"no projection module for {spec.projection}")
