"""Projections of the FaceID adapters: a face's embedding, and with "plus" a picture of it too, to image tokens.

Arithmetic and names of tensors are those of tencent-ailab/IP-Adapter (ip_adapter/ip_adapter_faceid.py, Apache-2.0).
"""

# B faces, I identity dim, S feature positions, E encoder dim, N tokens, W token width

from typing import cast

from torch import Tensor, nn

from ..file.spec import FaceSpec, ResamplerSpec
from ..operations import Operations
from .resampler import perceive, perceiver_layers
from .two_layers import TwoLayerProjection


class IdentityProjection(TwoLayerProjection):
    """Two-layer MLP over the face's embedding (FaceID and portrait)."""

    def __init__(self, face: FaceSpec, num_tokens: int, ops: Operations) -> None:
        assert face.hidden_dim is not None
        super().__init__(face.identity_dim, face.hidden_dim, face.token_dim, num_tokens, ops)


class FacePerceiver(nn.Module):
    """A perceiver resampler whose queries are the identity's tokens."""

    def __init__(self, spec: ResamplerSpec, image_dim: int, ops: Operations) -> None:
        super().__init__()
        self.proj_in = ops.Linear(image_dim, spec.dim)
        self.proj_out = ops.Linear(spec.dim, spec.dim)
        self.norm_out = ops.LayerNorm(spec.dim)
        self.layers = perceiver_layers(spec, ops)

    def forward(self, features: Tensor, tokens: Tensor) -> Tensor:
        """(B, S, E) and (B, N, W) to (B, N, W)."""
        return cast(Tensor, self.norm_out(self.proj_out(perceive(self.layers, self.proj_in(features), tokens))))


class IdentityAndFaceProjection(IdentityProjection):
    """The identity's tokens read the features of the face's picture (FaceID-Plus, Kolors FaceID)."""

    def __init__(
        self, face: FaceSpec, resampler: ResamplerSpec, image_dim: int, num_tokens: int, ops: Operations
    ) -> None:
        super().__init__(face, num_tokens, ops)
        self.perceiver_resampler = FacePerceiver(resampler, image_dim, ops)

    def read(self, identity: Tensor, features: Tensor, structure: float | None) -> Tensor:
        """(B, I) and (B, S, E) to (B, N, W).

        Args:
            structure: None is v1, what the resampler makes; a number is v2, the identity's tokens plus that many times
                what the resampler makes.
        """
        tokens = self(identity)
        read = cast(Tensor, self.perceiver_resampler(features, tokens))
        return read if structure is None else tokens + structure * read
