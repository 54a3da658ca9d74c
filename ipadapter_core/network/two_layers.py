"""An MLP of two layers and a LayerNorm over one vector: of a face, or of a pooled embedding."""

# B references, E width of the vector, N tokens, W token width

from typing import cast

from einops import rearrange
from torch import Tensor, nn

from ..operations import Operations


class TwoLayerProjection(nn.Module):
    """`MLPProjModel` of InstantX/FLUX.1-dev-IP-Adapter, and that of the FaceID adapters (tencent-ailab/IP-Adapter)."""

    def __init__(self, image_dim: int, hidden_dim: int, token_dim: int, num_tokens: int, ops: Operations) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.proj = nn.Sequential(
            ops.Linear(image_dim, hidden_dim),
            nn.GELU(),
            ops.Linear(hidden_dim, num_tokens * token_dim),
        )
        self.norm = ops.LayerNorm(token_dim)

    def forward(self, vector: Tensor) -> Tensor:
        """(B, E) to (B, N, W)."""
        return cast(Tensor, self.norm(rearrange(self.proj(vector), "b (n w) -> b n w", n=self.num_tokens)))
