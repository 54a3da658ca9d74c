"""What goes into the keys and values of adapters whose layout asks for it: strengths on tokens, weights of the model."""

from collections.abc import Mapping, Sequence

import comfy.lora
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...ipadapter_core.backbone.row import Place, SiteLayout
from ...ipadapter_core.backbone.sites import Site
from ...ipadapter_core.branch.guard import Guard
from ...ipadapter_core.branch.tokens import ImageTokens, in_one_row, weighed
from ...ipadapter_core.errors import BadInputError
from ...ipadapter_core.strength.scaling import SCALINGS, VALUE_ONLY, Scaling
from ...ipadapter_core.strength.site import AnyStrength, SiteStrength
from ..sockets import LoadedAdapter


def check_scaling(adapter: LoadedAdapter, layout: SiteLayout, scaling: Scaling) -> None:
    """Raises BadInputError: keys are to be scaled where a strength does not come near them."""
    if scaling == VALUE_ONLY or not (adapter.spec.is_timed or layout.scales_tokens):
        return
    names = {known: name for name, known in SCALINGS.items()}
    raise BadInputError(
        f"embeds_scaling '{names[scaling]}' for {adapter.name}",
        expected=f"'{names[VALUE_ONLY]}', the one that means something for {adapter.spec.family}",
        action=f"set embeds_scaling to '{names[VALUE_ONLY]}'",
    )


def check_guard(adapter: LoadedAdapter, layout: SiteLayout, guard: Guard) -> None:
    """Raises BadInputError: the branch is to be compared with a text branch that is not there where it acts."""
    if guard.changes_branch and layout.place is Place.BEFORE_MLP:
        raise BadInputError(
            f"a guard that is orthogonal or rescales, for {adapter.name}, which acts before the MLP of a block",
            expected="noise alone, or an adapter that acts elsewhere",
            action="set orthogonal and rescale of the guard to 0",
        )


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
    kept = model.backup.get(name)  # as it was before ComfyUI patched it, for this clone or another
    weight: Tensor = (model.get_model_object(name) if kept is None else kept.weight).detach().cpu()
    weight = weight.to(torch.float64 if weight.dtype is torch.float64 else torch.float32, copy=True)
    if name in model.patches:
        weight = comfy.lora.calculate_weight(model.patches[name], weight, name)
    return weight
