"""Apply an adapter to a model: everything is checked before anything is patched."""

import logging
from dataclasses import dataclass

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..ipadapter_core.errors import MismatchError
from ..ipadapter_core.kv import SiteKV, pack_sites, project_tokens
from ..ipadapter_core.layer_weights import LayerWeights
from ..ipadapter_core.masks import check_mask
from ..ipadapter_core.plan import PatchPlan
from ..ipadapter_core.presets import resolve_preset
from ..ipadapter_core.schedule import sigma_range
from ..ipadapter_core.sites import check_sites, discover_sites
from ..ipadapter_core.tokens import ImageTokens
from .cache import CACHE
from .patch import install
from .types import LoadedAdapter

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
    unet = discover_sites(model.get_model_object("diffusion_model"))
    check_sites(adapter.spec, unet)
    if tokens.adapter_id != adapter.adapter_id:
        raise MismatchError(
            f"tokens that another adapter made, applied with {adapter.name}",
            expected=f"tokens encoded with {adapter.name}",
            action="connect one and the same adapter to the encode and the apply node",
        )
    percent_to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    sigmas = sigma_range(use.start_percent, use.end_percent, percent_to_sigma)
    mask = None if use.mask is None else check_mask(use.mask)
    strengths = resolve_preset(use.layer_preset, unet, use.strength)
    if use.layer_weights is not None:
        strengths = use.layer_weights.apply(strengths, unet)
    nothing = _why_nothing(use, mask, all(strength.value == 0 for strength in strengths.values()))
    if nothing:
        logger.log(logging.INFO if use.strength == 0 else logging.WARNING, "IP-Adapter has no effect: %s.", nothing)
        return model
    packed, sites = pack_sites(_site_kv(adapter, tokens), unet.sites, strengths)
    is_everywhere = mask is None or bool(torch.all(mask == 1))
    return install(model, unet, PatchPlan(sites, packed, sigmas, None if is_everywhere else mask))


def _site_kv(adapter: LoadedAdapter, tokens: ImageTokens) -> SiteKV:
    return CACHE.get_or_make(
        ("kv", tokens.digest),
        SiteKV,
        lambda: project_tokens(adapter.network, tokens, adapter.load_to_device()),
        lambda kv: kv.num_bytes,
    )


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
