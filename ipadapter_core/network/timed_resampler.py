"""The resampler of InstantX's SD3.5 adapter, which reads the noise level beside the image, so that its tokens change with
every step (InstantX/SD3.5-Large-IP-Adapter)."""

# B references, S feature positions, E encoder dim, Q queries, W resampler width, C token dim

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..file.spec import ResamplerSpec
from ..operations import Operations
from .resampler import PerceiverAttention, attention_and_feed_forward

_LONGEST_PERIOD = 10000


class TimeEmbedding(nn.Module):
    """A timestep as a vector."""

    def __init__(self, time_dim: int, dim: int, ops: Operations) -> None:
        super().__init__()
        self.time_dim = time_dim
        self.linear_1 = ops.Linear(time_dim, dim)
        self.linear_2 = ops.Linear(dim, dim)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> Tensor:
        """(B,), 0..1000, to (B, W) of a dtype."""
        half = self.time_dim // 2
        rates = torch.exp(
            -math.log(_LONGEST_PERIOD) * torch.arange(half, device=timestep.device, dtype=torch.float32) / half
        )
        angles = timestep.float()[:, None] * rates
        waves = torch.cat((angles.cos(), angles.sin()), dim=-1).to(dtype)
        return cast(Tensor, self.linear_2(functional.silu(self.linear_1(waves))))


class TimedLayer(nn.ModuleList):
    """Attention, feed-forward, and how the noise level moves what both read; numbered as published."""

    def __init__(self, spec: ResamplerSpec, ops: Operations) -> None:
        parts = attention_and_feed_forward(spec, ops)
        super().__init__((*parts, nn.Sequential(nn.SiLU(), ops.Linear(spec.dim, 4 * spec.dim))))

    def forward(self, features: Tensor, latents: Tensor, time: Tensor) -> Tensor:
        """(B, S, W), (B, Q, W) and (B, W) to (B, Q, W)."""
        attention, feed_forward = cast(PerceiverAttention, self[0]), cast(nn.Sequential, self[1])
        shift, scale, later_shift, later_scale = self[2](time)[:, None].chunk(4, dim=-1)
        latents = latents + attention.attend(attention.norm1(features), attention.norm2(latents) * (1 + scale) + shift)
        norm, *rest = feed_forward
        x = norm(latents) * (1 + later_scale) + later_shift
        for part in rest:
            x = part(x)
        return cast(Tensor, latents + x)


class TimedResampler(nn.Module):
    """A fixed number of learned queries reads a sequence of image features, differently at each noise level."""

    def __init__(self, spec: ResamplerSpec, image_dim: int, token_dim: int, ops: Operations) -> None:
        super().__init__()
        assert spec.time_dim is not None
        self.latents = nn.Parameter(torch.randn(1, spec.num_queries, spec.dim) / spec.dim**0.5)
        self.proj_in = ops.Linear(image_dim, spec.dim)
        self.proj_out = ops.Linear(spec.dim, token_dim)
        self.norm_out = ops.LayerNorm(token_dim)
        self.layers = nn.ModuleList(TimedLayer(spec, ops) for _ in range(spec.depth))
        self.time_embedding = TimeEmbedding(spec.time_dim, spec.dim, ops)

    def forward(self, features: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, S, E) and timesteps (B or 1,), 0..1000, to tokens (B, Q, C) and the timesteps' vectors (B or 1, W)."""
        time = self.time_embedding(timestep, features.dtype)
        read = self.proj_in(features) + time[:, None]
        latents = self.latents.to(read).expand(read.shape[0], -1, -1)
        for layer in self.layers:
            latents = layer(read, latents, time)
        return self.norm_out(self.proj_out(latents)), time
