"""SD3 and SD3.5: joint blocks, whose attention runs over text and picture together."""

# R rows, T image tokens, C token dim, W width of the time's vector, H heads, D head dim

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..operations import Operations
from .projections import HeadNorm
from .row import Backbone, SiteLayout, TimedSites
from .sites import Address, Site, blocks_in_a_row

_GROUP = "joint"
_EPSILON = 1e-6
_HEAD_DIM, _TIME_DIM = 64, 1280  # as published


class TimeNorm(nn.Module):
    """A layer norm whose weights follow from the noise level."""

    def __init__(self, time_dim: int, dim: int, ops: Operations) -> None:
        super().__init__()
        self.linear = ops.Linear(time_dim, 2 * dim)

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Tokens (R, T, C) of noise levels (R, W), or all of one (1, W)."""
        shift, scale = self.linear(time)[:, None].chunk(2, dim=-1)
        return torch.addcmul(shift, functional.layer_norm(tokens, tokens.shape[-1:], eps=_EPSILON), 1 + scale)


class JointProjection(nn.Module):
    """The weights of InstantX's SD3.5 adapter at one block.

    `norm_q` and `norm_k` are the adapter's own norms of the block's queries and keys, in place of the block's.
    """

    def __init__(
        self,
        cross_attention_dim: int,
        site_dim: int,
        ops: Operations,
        head_dim: int = _HEAD_DIM,
        time_dim: int = _TIME_DIM,
    ) -> None:
        super().__init__()
        self.norm_ip = TimeNorm(time_dim, cross_attention_dim, ops)
        self.to_k_ip = ops.Linear(cross_attention_dim, site_dim, bias=False)
        self.to_v_ip = ops.Linear(cross_attention_dim, site_dim, bias=False)
        self.norm_q, self.norm_k, self.norm_ip_k = (HeadNorm(head_dim) for _ in range(3))

    def kv(self, tokens: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (R, T, H, D) of tokens (R, T, C) of noise levels, whose vectors (R or 1, W) went through SiLU."""
        normed, weight = self.norm_ip(tokens, time), self.norm_ip_k.weight
        key, value = (part.unflatten(-1, (-1, len(weight))) for part in (self.to_k_ip(normed), self.to_v_ip(normed)))
        return functional.rms_norm(key, weight.shape, weight.to(key), _EPSILON), value


def _kv(projection: nn.Module, tokens: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    return cast(JointProjection, projection).kv(tokens, time)


def _own_norms(projection: nn.Module) -> tuple[Tensor, Tensor]:
    weights = cast(JointProjection, projection)
    return weights.norm_q.weight, weights.norm_k.weight


def _block_norms(diffusion_model: nn.Module, address: Address) -> tuple[Tensor | None, Tensor | None]:
    """The weights a block norms its queries and keys of the picture with; None where it does not norm them (SD3)."""
    attention = cast(Any, diffusion_model).joint_blocks[address[1]].x_block.attn
    return getattr(attention.ln_q, "weight", None), getattr(attention.ln_k, "weight", None)


def find_sites(diffusion_model: nn.Module) -> tuple[Site, ...]:
    """Every joint block; none where the model is another."""
    blocks = getattr(diffusion_model, "joint_blocks", None)
    if not blocks or getattr(diffusion_model, "context_embedder", None) is None:
        return ()
    attention = [getattr(getattr(block, "x_block", None), "attn", None) for block in cast(nn.ModuleList, blocks)]
    if any(layer is None or isinstance(layer.ln_q, nn.LayerNorm) for layer in attention):
        return ()  # what a layer norm took away cannot be got back
    return blocks_in_a_row(_GROUP, ((layer.num_heads, layer.head_dim) for layer in cast(list[Any], attention)))


SD3 = Backbone(
    name="SD3",
    find=find_sites,
    groups=(_GROUP,),
    roles=lambda _blocks: {},
    site_projection=JointProjection,
    site_key=str,
    patch_size=lambda model: cast(int, model.patch_size),
    families={(0, 38): "SD3.5-Large"},
    unserved={(0, 24): "SD3-Medium or SD3.5-Medium"},
    layouts={
        "InstantX SD3.5": SiteLayout(
            site_projection=JointProjection,
            site_key=str,
            timed=TimedSites(
                projection=JointProjection,
                kv=_kv,
                adapter_norms=_own_norms,
                block_norms=_block_norms,
                epsilon=_EPSILON,
            ),
        ),
    },
)
