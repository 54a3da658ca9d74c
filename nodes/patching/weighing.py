"""What goes into the keys and values of adapters whose layout asks for it: strengths on tokens, weights of the model."""

from collections.abc import Mapping, Sequence

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...ipadapter_core.backbone.row import SiteLayout
from ...ipadapter_core.backbone.sites import Site
from ...ipadapter_core.branch.tokens import ImageTokens, in_one_row, weighed
from ...ipadapter_core.strength.site import AnyStrength, SiteStrength


def weigh_tokens(
    sites: Sequence[Site],
    tokens: Mapping[int, ImageTokens],
    strengths: Mapping[int, AnyStrength],
    *,
    per_frame: bool,
) -> tuple[dict[int, ImageTokens], dict[int, AnyStrength], bool]:
    """Tokens with the strengths in them, strengths of 1 in their place, and whether there is a row per frame now."""
    has_frames = per_frame or any(len(strengths[site.index].factors) > 1 for site in sites)
    made: dict[tuple[ImageTokens, tuple[float, ...]], ImageTokens] = {}
    weighed_tokens: dict[int, ImageTokens] = {}
    for site in sites:
        given, factors = tokens[site.index], strengths[site.index].factors
        if (given, factors) not in made:
            rows = in_one_row(given) if has_frames and not per_frame else given
            made[given, factors] = weighed(rows, factors)
        weighed_tokens[site.index] = made[given, factors]
    neutral: dict[int, AnyStrength] = {site.index: SiteStrength(1.0, strengths[site.index].swap) for site in sites}
    return weighed_tokens, neutral, has_frames


def key_weights(model: ModelPatcher, sites: Sequence[Site], layout: SiteLayout) -> dict[int, Tensor]:
    """By site index, the weight of the model that its keys are multiplied with, patched as the model is."""
    if layout.key_weight is None:
        return {}
    names = {site.index: f"diffusion_model.{layout.key_weight(site)}" for site in sites}
    return {index: _patched_weight(model, name) for index, name in names.items()}


def _patched_weight(model: ModelPatcher, name: str) -> Tensor:
    weight: Tensor = model.get_model_object(name).detach().to("cpu", torch.float32)
    if name in model.patches and name not in model.backup:
        weight = comfy.lora.calculate_weight(model.patches[name], weight.clone(), name)
    return weight
