"""Apply an adapter to a model: everything is checked before anything is patched."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...ipadapter_core.backbone.registry import discover_sites
from ...ipadapter_core.backbone.sites import Site, Sites
from ...ipadapter_core.branch.frames import FrameKV
from ...ipadapter_core.branch.guard import NO_GUARD, Guard
from ...ipadapter_core.branch.heat import References
from ...ipadapter_core.branch.kv import KVSource, SiteKV, active_sites, pack_sites, project_tokens
from ...ipadapter_core.branch.masks import AREA, check_mask
from ...ipadapter_core.branch.plan import PatchPlan
from ...ipadapter_core.branch.schedule import PercentRange, percent_range
from ...ipadapter_core.branch.tokens import ImageTokens, only_reference, with_noise
from ...ipadapter_core.errors import BadInputError
from ...ipadapter_core.network.fit import base_of, check_sites
from ...ipadapter_core.strength.curve import Curve, Schedule, turns
from ...ipadapter_core.strength.layer_weights import LayerWeights
from ...ipadapter_core.strength.presets import resolve_preset
from ...ipadapter_core.strength.scaling import VALUE_ONLY, Scaling
from ...ipadapter_core.strength.site import AnyStrength, FrameStrength, SiteStrength
from ..cache import CACHE
from ..sockets import LoadedAdapter, check_origin
from .applied import applied_to
from .install import install
from .model_lora import add_model_lora, check_model_lora
from .narrowing import narrowed
from .timed import timed_source
from .weighing import check_guard, check_scaling, key_weights, weigh_tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ApplySettings:
    """How an adapter is to be used; the widgets of the apply nodes.

    Attributes:
        strength: 1 as trained, 0 not at all.
        start_percent, end_percent: 0..1 of the sampling.
        layer_preset: a key of `presets.PRESETS`.
        layer_weights: factors on top of the preset; None is 1 everywhere.
        mask: (M, H, W), 0..1; None is 1 everywhere.
        with_lora: whether a LoRA for the model that the adapter's file has is added too.
        schedule: how the strength changes; None is not at all.
        guard: what keeps the image from burning the picture.
    """

    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    layer_preset: str = "all"
    layer_weights: LayerWeights | None = None
    mask: Tensor | None = None
    with_lora: bool = True
    schedule: Schedule | None = None
    guard: Guard = NO_GUARD


def apply_adapter(
    model: ModelPatcher, adapter: LoadedAdapter, tokens: ImageTokens, settings: ApplySettings
) -> ModelPatcher:
    """A patched clone of the model; the model itself if nothing would change.

    Raises:
        MismatchError: adapter, tokens and model do not belong together.
        BadInputError: a range, preset, factor or mask that cannot be used.
    """
    sites = fitting_sites(model, adapter)
    check_origin(tokens, adapter)
    acting = percent_range(settings.start_percent, settings.end_percent)
    mask = None if settings.mask is None else check_mask(settings.mask)
    strengths = resolve_preset(settings.layer_preset, sites, settings.strength)
    if settings.layer_weights is not None:
        strengths = settings.layer_weights.apply(strengths, sites)
    nothing = _why_nothing(settings, mask, all(strength.value == 0 for strength in strengths.values()))
    if nothing:
        logger.log(
            logging.INFO if settings.strength == 0 else logging.WARNING, "IP-Adapter has no effect: %s.", nothing
        )
        return model
    tokens = narrowed(model, adapter.spec, tokens)
    schedule = settings.schedule
    curve = None if schedule is None or schedule.frames is not None or schedule.curve.is_neutral else schedule.curve
    limits = Limits(acting, mask, with_lora=settings.with_lora, curve=curve, guard=settings.guard)
    tokens = with_noise(tokens, settings.guard.noise)
    for part, factors in _over_frames(tokens, schedule):
        weighed = {index: _times(strength, factors) for index, strength in strengths.items()}
        model = patch_sites(model, sites, adapter, dict.fromkeys(strengths, part), weighed, limits)
    return model


def _over_frames(tokens: ImageTokens, schedule: Schedule | None) -> list[tuple[ImageTokens, tuple[float, ...] | None]]:
    """Tokens, and how strong they are in each frame; None is in all alike.

    Raises:
        BadInputError: one reference that is to fade into the next.
    """
    if schedule is None or schedule.frames is None:
        return [(tokens, None)]
    factors = schedule.curve.over_frames(schedule.frames)
    if not schedule.fades:
        return [(tokens, factors)]
    if tokens.num_references == 1:
        raise BadInputError(
            "one reference, and a schedule in which references fade into one another",
            expected="two references or more, in the order in which they appear",
            action="connect a batch of pictures, or switch fading off in the schedule",
        )
    shares = turns(tokens.num_references, schedule.frames)
    return [
        (only_reference(tokens, number), tuple(a * b for a, b in zip(share, factors, strict=True)))
        for number, share in enumerate(shares)
    ]


def _times(strength: SiteStrength, factors: tuple[float, ...] | None) -> AnyStrength:
    if factors is None:
        return strength
    return FrameStrength(tuple(strength.value * factor for factor in factors), strength.swap)


def fitting_sites(model: ModelPatcher, adapter: LoadedAdapter) -> Sites:
    """The attention layers of a model; raises MismatchError unless the adapter was made for them."""
    sites = discover_sites(model.get_model_object("diffusion_model"), base_of(adapter.spec))
    if sites.backbone.name == adapter.spec.backbone:
        sites = sites.at_layout(adapter.spec.layout)
    check_sites(adapter.spec, sites)
    check_model_lora(model, adapter)
    return sites


@dataclass(frozen=True, eq=False)
class Limits:
    """When, where and with what an adapter acts: see `PatchPlan` and `ApplySettings`."""

    acting: PercentRange | None = None
    mask: Tensor | None = None
    resampling: str = AREA
    with_lora: bool = True
    curve: Curve | None = None
    guard: Guard = NO_GUARD


def patch_sites(
    model: ModelPatcher,
    sites: Sites,
    adapter: LoadedAdapter,
    tokens: Mapping[int, ImageTokens],
    strengths: Mapping[int, AnyStrength],
    limits: Limits,
    scaling: Scaling = VALUE_ONLY,
    *,
    per_frame: bool = False,
) -> ModelPatcher:
    """A clone of the model patched at every site that has a strength.

    Args:
        tokens: by site index, as wide as the adapter's K/V projections read.
        strengths: by site index.
        per_frame: reference i of the tokens is for latent i; else all act together on every latent.
    """
    active = active_sites(sites.sites, strengths)
    layout = sites.backbone.layout(adapter.spec.layout)
    per_frame = per_frame and any(max(len(of.mixes.cond), len(of.mixes.uncond)) > 1 for of in tokens.values())
    check_scaling(adapter, layout, scaling)
    check_guard(adapter, layout, limits.guard)
    references = _references(active, adapter, tokens, per_frame=per_frame)
    if layout.scales_tokens:
        tokens, strengths, per_frame = weigh_tokens(active, tokens, strengths, per_frame=per_frame)
    weights = key_weights(model, active, layout)
    source: KVSource
    if adapter.spec.is_timed:
        has_frames = per_frame or any(len(strength.factors) > 1 for strength in strengths.values())
        source = timed_source(adapter, active, tokens, strengths, has_frames)
    elif per_frame:
        for of in set(tokens.values()):
            _site_kv(adapter, replace(of, cond=of.cond[:1], uncond=of.uncond[:1]))  # finds damaged weights
        source = FrameKV(active, strengths, adapter.network, tokens, scaling=scaling, key_weights=weights)
    else:
        kv = _joined(adapter, tokens, by_site=layout.scales_tokens)
        if any(len(strength.factors) > 1 for strength in strengths.values()):
            source = FrameKV(active, strengths, adapter.network, {}, kv, scaling, weights)
        else:
            source = pack_sites(kv, active, strengths, scaling, weights)
    gates = tuple(gate for site in active if (gate := adapter.network.gate(site.index)) is not None)
    is_everywhere = limits.mask is None or bool(torch.all(limits.mask == 1))
    mask = None if is_everywhere else limits.mask
    outside = tuple(strengths[site.index] for site in active) if adapter.spec.is_timed else ()
    before = applied_to(model.model_options["transformer_options"])
    adds_lora = limits.with_lora and all(
        other.lora_of != adapter.adapter_id for other in (before.plans if before else ())
    )  # once, however often the adapter is applied
    lora_of = adapter.adapter_id if limits.with_lora else ""
    plan = PatchPlan(
        active,
        source,
        acting=limits.acting,
        mask=mask,
        resampling=limits.resampling,
        place=layout.place,
        strengths=outside,
        gates=gates,
        lora_of=lora_of,
        curve=limits.curve,
        references=references,
        guard=limits.guard,
    )
    is_needed = per_frame or adapter.spec.is_timed or bool(gates)
    patched = install(model, sites, plan, (adapter.patcher,) if is_needed else ())
    if adds_lora:
        add_model_lora(patched, adapter)
    return patched


def _references(
    sites: Sequence[Site], adapter: LoadedAdapter, tokens: Mapping[int, ImageTokens], *, per_frame: bool
) -> tuple[References, ...]:
    """Whose the image tokens of each site are; those of other tokens than the first site's are counted on."""
    if per_frame:
        return (References(),) * len(sites)
    first: dict[ImageTokens, int] = {}
    counted = 0
    for site in sites:
        of = tokens[site.index]
        if of not in first:
            first[of] = counted
            counted += of.num_references
    given = (tokens[site.index] for site in sites)
    length = None if not adapter.spec.is_timed else adapter.spec.num_tokens
    return tuple(References(first[of], of.num_references, length or of.cond.shape[1]) for of in given)


def _joined(adapter: LoadedAdapter, tokens: Mapping[int, ImageTokens], *, by_site: bool) -> SiteKV:
    """Keys and values of every site for its own tokens.

    Args:
        by_site: tokens are for some sites alone, and those of other sites are never asked for.
    """
    users = {of: tuple(index for index in tokens if tokens[index] is of) for of in set(tokens.values())}
    made = {of: _site_kv(adapter, of, users[of] if by_site else None) for of in users}
    keys, values = (
        {index: getattr(made[of], part)[index] for index, of in tokens.items()} for part in ("keys", "values")
    )
    return SiteKV(keys, values, next((kv.tokens for kv in made.values()), None))


def _site_kv(adapter: LoadedAdapter, tokens: ImageTokens, sites: tuple[int, ...] | None = None) -> SiteKV:
    """Keys and values of the tokens at these sites, computed once per content; None is all."""
    return CACHE.get_or_make(
        ("kv", tokens.digest, sites),
        SiteKV,
        lambda: project_tokens(adapter.network, tokens, adapter.load_to_device(), sites),
        lambda kv: kv.num_bytes,
    )


def _why_nothing(settings: ApplySettings, mask: Tensor | None, is_off: bool) -> str | None:
    if settings.strength == 0:
        return "strength is 0"
    if is_off:
        return "the layer weights switch every layer off"
    if settings.start_percent == settings.end_percent:
        return f"it starts and ends at the same point ({settings.start_percent:g})"
    if mask is not None and not mask.any():
        return "its mask is all zero"
    return None
