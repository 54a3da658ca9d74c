"""Anima, a Cosmos-Predict2 with a text adapter of its own: blocks of self-attention, cross-attention and MLP."""

from functools import partial
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import MismatchError
from ..operations import Operations
from .projections import CrossAttentionProjection
from .row import Backbone, Place, SiteLayout, in_heads, plain_kv
from .sites import Site, blocks_in_a_row

_GROUP = "block"
_EPSILON = 1e-6
_NOTHING = 1e-6  # sum of what counts as no tokens at all


class Gate(nn.Module):
    """How much of the image a block takes, by the model's timestep embedding."""

    def __init__(self, _cross_attention_dim: int, site_dim: int, ops: Operations) -> None:
        super().__init__()
        self.adaln_ip = nn.Sequential(nn.SiLU(), ops.Linear(site_dim, site_dim))


class GatedProjection(Gate):
    """The weights of a block in LuciferTC's adapters."""

    def __init__(self, cross_attention_dim: int, site_dim: int, ops: Operations) -> None:
        super().__init__(cross_attention_dim, site_dim, ops)
        self.to_k_ip = ops.Linear(cross_attention_dim, site_dim)
        self.to_v_ip = ops.Linear(cross_attention_dim, site_dim)


class TwoLayers(nn.Module):
    """One half of a projection that all blocks share."""

    def __init__(self, cross_attention_dim: int, site_dim: int, ops: Operations) -> None:
        super().__init__()
        self.expand = ops.Linear(cross_attention_dim, site_dim)
        self.project = ops.Linear(site_dim, site_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(…, C) to (…, H·D)."""
        return cast(Tensor, self.project(functional.gelu(self.expand(tokens))))


class SharedProjection(nn.Module):
    """`to_k_ip` and `to_v_ip` of all blocks, where a file of LuciferTC's kind has them but once."""

    def __init__(self, cross_attention_dim: int, site_dim: int, ops: Operations) -> None:
        super().__init__()
        self.to_k_ip = TwoLayers(cross_attention_dim, site_dim, ops)
        self.to_v_ip = TwoLayers(cross_attention_dim, site_dim, ops)


class ScaledProjection(CrossAttentionProjection):
    """The weights of a block in newer adapters of anima_lora, which have a number it is multiplied with."""

    def __init__(self, cross_attention_dim: int, site_dim: int, ops: Operations) -> None:
        super().__init__(cross_attention_dim, site_dim, ops)
        self.gate = nn.Parameter(torch.zeros(()))


def find_sites(diffusion_model: nn.Module) -> tuple[Site, ...]:
    """The cross-attention of every block; none where the model is another.

    Raises:
        MismatchError: a Cosmos-Predict2 that is no Anima, which has the same blocks.
    """
    model = cast(Any, diffusion_model)
    blocks = getattr(model, "blocks", None)
    if not (blocks and hasattr(model, "patch_temporal") and all(hasattr(block, "cross_attn") for block in blocks)):
        return ()
    if not all(hasattr(block.cross_attn, "q_norm") and hasattr(block, "layer_norm_mlp") for block in blocks):
        return ()  # the first Cosmos
    if not hasattr(model, "llm_adapter"):
        raise MismatchError(
            f"a Cosmos-Predict2 model ({len(blocks)} blocks) without Anima's text adapter",
            expected="Anima or a model made from it: no adapter is known for Cosmos-Predict2 itself",
            action="load an Anima checkpoint that has its llm_adapter",
        )
    return blocks_in_a_row(_GROUP, ((block.cross_attn.n_heads, block.cross_attn.head_dim) for block in blocks))


def _lucifer_kv(projection: nn.Module, tokens: Tensor, head_dim: int, *, is_normed: bool) -> tuple[Tensor, Tensor]:
    """Tokens of zeros are no image, though the projections have biases."""
    key, value = plain_kv(projection, tokens, head_dim)
    if is_normed:
        key = functional.layer_norm(in_heads(key, head_dim), (head_dim,), eps=_EPSILON).flatten(-2)
    return key, value * (tokens.abs().sum(dim=(-2, -1), keepdim=True) > _NOTHING)


def _normed_kv(projection: nn.Module, tokens: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Keys have a root mean square of 1 over each head; the weights of that norm are the model's."""
    key, value = plain_kv(projection, tokens, head_dim)
    return functional.rms_norm(in_heads(key, head_dim), (head_dim,), eps=_EPSILON).flatten(-2), value


def _scaled_kv(projection: nn.Module, tokens: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    key, value = plain_kv(projection, tokens, head_dim)
    return key, value * cast(Tensor, projection.gate).to(value)


def _lucifer(*, is_shared: bool, is_normed: bool, is_early: bool) -> SiteLayout:
    return SiteLayout(
        site_projection=Gate if is_shared else GatedProjection,
        site_key=str,
        shared_projection=SharedProjection if is_shared else None,
        kv=partial(_lucifer_kv, is_normed=is_normed),
        place=Place.BEFORE_MLP if is_early else Place.BLOCK,
        gate=lambda weights: cast(nn.Module, weights.adaln_ip),
        scales_tokens=True,
    )


_LUCIFER = {
    "Anima LuciferTC" + " shared" * is_shared + " normed keys" * is_normed + " before MLP" * is_early: _lucifer(
        is_shared=is_shared, is_normed=is_normed, is_early=is_early
    )
    for is_shared, is_normed, is_early in product((False, True), repeat=3)
}
ANIMA = Backbone(
    name="Anima",
    find=find_sites,
    groups=(_GROUP,),
    roles=lambda _blocks: {},
    site_projection=GatedProjection,
    site_key=str,
    patch_size=lambda model: cast(int, model.patch_spatial),
    families={(0, 28): "Anima"},
    layouts={
        **_LUCIFER,
        "Anima PE": SiteLayout(
            site_projection=CrossAttentionProjection,
            site_key=str,
            kv=_normed_kv,
            key_weight=lambda site: f"blocks.{site.index}.cross_attn.k_norm.weight",
        ),
        "Anima PE gated": SiteLayout(site_projection=ScaledProjection, site_key=str, kv=_scaled_kv),
    },
)
