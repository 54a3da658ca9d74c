"""The same IP-Adapter in diffusers and through `ipadapter_core`, for comparison."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ipadapter_core.backbone.sites import Site
from ipadapter_core.branch.attention import add_image_attention, image_attention
from ipadapter_core.branch.kv import active_sites, pack_sites, project_tokens
from ipadapter_core.branch.masks import check_mask
from ipadapter_core.branch.plan import PatchPlan
from ipadapter_core.branch.resident import Resident
from ipadapter_core.branch.rows import Group, Rows
from ipadapter_core.branch.tokens import ImageTokens
from ipadapter_core.network.adapter import IPAdapter
from ipadapter_core.strength.site import SiteStrength

CPU = torch.device("cpu")
COND_LAST = (1, 0)  # cond_or_uncond of the order diffusers' pipelines use
FeatureMap = Callable[[int], tuple[int, int]]  # number of queries to height and width


def site_of(attention: Attention, index: int, name: str = "") -> Site:
    """A cross-attention layer of diffusers as our site with that index; its address plays no part here."""
    return Site(
        index=index,
        address=(name.partition("_")[0], 0, 0),
        depth=0.0,
        heads=attention.heads,
        head_dim=attention.inner_dim // attention.heads,
        context_dim=attention.cross_attention_dim,
    )


def make_plan(
    adapter: IPAdapter,
    tokens: ImageTokens,
    sites: Sequence[Site],
    strengths: Mapping[int, float],
    mask: Tensor | None = None,
) -> PatchPlan:
    by_site = {index: SiteStrength(value) for index, value in strengths.items()}
    active = active_sites(sites, by_site)
    packed = pack_sites(project_tokens(adapter, tokens, CPU), active, by_site)
    return PatchPlan(active, packed, mask=None if mask is None else check_mask(mask))


@dataclass(frozen=True)
class Moment:
    """A forward over these frames."""

    frames: tuple[int, ...]


@dataclass(eq=False)
class CoreProcessor:
    """An attention processor for diffusers that does what `nodes.patching.unet.IPAttentionPatch` does in ComfyUI."""

    plans: Sequence[PatchPlan]
    site: Site
    conditions: Sequence[int] = COND_LAST
    feature_map: FeatureMap | None = None

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: None = None
    ) -> Tensor:
        q = attn.to_q(hidden_states)
        heads = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for x in (q, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        )
        out = attend(*heads)
        for plan in self.plans:
            if self.site in plan.sites:
                resident, frames = Resident(plan, q.device, q.dtype), tuple(range(len(q) // len(self.conditions)))
                rows = Rows(tuple(Group(side, side) for side in self.conditions), len(frames))
                k, v = resident.kv(plan.sites.index(self.site), rows, Moment(frames))
                image = image_attention(q, k, v, attend)
                size = self.feature_map(q.shape[1]) if self.feature_map else ()
                out = add_image_attention(out, image, resident.mask(size, q.shape[1], rows, frames))
        result: Tensor = attn.to_out[0](out)
        return result


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def cross_attentions(unet: Any) -> dict[str, Attention]:
    """Cross-attention layers by name in the order of `attn_processors`, which is that of the checkpoints."""
    modules = dict(unet.named_modules())
    names = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    return {name: modules[name] for name in names}


def batched(uncond: Tensor, cond: Tensor, latents: int) -> Tensor:
    """References of both sides (R, …) as diffusers takes them: (2·B, R, …), the uncond half first."""
    return torch.stack([uncond] * latents + [cond] * latents)
