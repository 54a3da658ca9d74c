"""Apply an adapter to a model: everything is checked before anything is patched."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...ipadapter_core.backbone.backbones import discover_sites
from ...ipadapter_core.backbone.sites import Sites
from ...ipadapter_core.branch.kv import SiteKV, pack_sites, project_tokens
from ...ipadapter_core.branch.masks import AREA, check_mask
from ...ipadapter_core.branch.plan import PatchPlan
from ...ipadapter_core.branch.schedule import SigmaRange, sigma_range
from ...ipadapter_core.branch.tokens import ImageTokens
from ...ipadapter_core.errors import MismatchError
from ...ipadapter_core.network.fit import check_sites
from ...ipadapter_core.strength.layer_weights import LayerWeights
from ...ipadapter_core.strength.presets import resolve_preset
from ...ipadapter_core.strength.scaling import VALUE_ONLY, Scaling
from ...ipadapter_core.strength.site import AnyStrength
from ..cache import CACHE
from ..sockets import LoadedAdapter
from .narrowing import narrowed
from .unet import install

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Use:
    """How an adapter is to be used; the widgets of the apply nodes.

    Attributes:
        strength: 1 as trained, 0 not at all.
        start_percent, end_percent: 0..1 of the sampling.
        layer_preset: a key of `presets.PRESETS`.
        layer_weights: factors on top of the preset; None is 1 everywhere.
        mask: (M, H, W), 0..1; None is 1 everywhere.
    """

    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    layer_preset: str = "all"
    layer_weights: LayerWeights | None = None
    mask: Tensor | None = None


def apply_adapter(model: ModelPatcher, adapter: LoadedAdapter, tokens: ImageTokens, use: Use) -> ModelPatcher:
    """A patched clone of the model; the model itself if nothing would change.

    Raises:
        MismatchError: adapter, tokens and model do not belong together.
        BadInputError: a range, preset, factor or mask that cannot be used.
    """
    sites = fitting_sites(model, adapter)
    if tokens.adapter_id != adapter.adapter_id:
        raise MismatchError(
            f"tokens that another adapter made, applied with {adapter.name}",
            expected=f"tokens encoded with {adapter.name}",
            action="connect one and the same adapter to the encode and the apply node",
        )
    sigmas = acting_range(model, use.start_percent, use.end_percent)
    mask = None if use.mask is None else check_mask(use.mask)
    strengths = resolve_preset(use.layer_preset, sites, use.strength)
    if use.layer_weights is not None:
        strengths = use.layer_weights.apply(strengths, sites)
    nothing = _why_nothing(use, mask, all(strength.value == 0 for strength in strengths.values()))
    if nothing:
        logger.log(logging.INFO if use.strength == 0 else logging.WARNING, "IP-Adapter has no effect: %s.", nothing)
        return model
    return patch_sites(
        model, sites, site_kv(adapter, narrowed(model, adapter.spec, tokens)), strengths, Limits(sigmas, mask)
    )


def fitting_sites(model: ModelPatcher, adapter: LoadedAdapter) -> Sites:
    """The attention layers of a model; raises MismatchError unless the adapter was made for them."""
    sites = discover_sites(model.get_model_object("diffusion_model"))
    check_sites(adapter.spec, sites)
    return sites


def acting_range(model: ModelPatcher, start_percent: float, end_percent: float) -> SigmaRange | None:
    """Where in the model's noise schedule an adapter acts. Errors as `sigma_range`."""
    return sigma_range(start_percent, end_percent, model.get_model_object("model_sampling").percent_to_sigma)


def site_kv(adapter: LoadedAdapter, tokens: ImageTokens, *, per_frame: bool = False) -> SiteKV:
    """Keys and values of the tokens at every site, computed once per content; every reference a frame if `per_frame`."""
    return CACHE.get_or_make(
        ("kv", tokens.digest, per_frame),
        SiteKV,
        lambda: project_tokens(adapter.network, tokens, adapter.load_to_device(), per_frame=per_frame),
        lambda kv: kv.num_bytes,
    )


@dataclass(frozen=True, eq=False)
class Limits:
    """When and where an adapter acts: see `PatchPlan`."""

    sigmas: SigmaRange | None = None
    mask: Tensor | None = None
    resampling: str = AREA


def patch_sites(
    model: ModelPatcher,
    sites: Sites,
    kv: SiteKV,
    strengths: Mapping[int, AnyStrength],
    limits: Limits,
    scaling: Scaling = VALUE_ONLY,
) -> ModelPatcher:
    """A clone of the model patched with keys and values at every site that has a strength."""
    packed, active = pack_sites(kv, sites.sites, strengths, scaling)
    is_everywhere = limits.mask is None or bool(torch.all(limits.mask == 1))
    mask = None if is_everywhere else limits.mask
    return install(model, sites, PatchPlan(active, packed, limits.sigmas, mask, limits.resampling))


def _why_nothing(use: Use, mask: Tensor | None, is_off: bool) -> str | None:
    if use.strength == 0:
        return "strength is 0"
    if is_off:
        return "the layer weights switch every layer off"
    if use.start_percent == use.end_percent:
        return f"it starts and ends at the same point ({use.start_percent:g})"
    if mask is not None and not mask.any():
        return "its mask is all zero"
    return None
