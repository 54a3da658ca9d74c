"""`IPAttentionPatch`: what stands in ComfyUI's `attn2` slot of one site of a UNet, and how it gets there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from comfy.ldm.modules import attention as comfy_attention
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ...ipadapter_core.backbone.sites import Address, Site, Sites
from ...ipadapter_core.backbone.unet import is_deep
from ...ipadapter_core.branch.plan import PatchPlan
from ...ipadapter_core.branch.schedule import SigmaRange
from .applied import KEY
from .around import Around
from .compiled import add_images

AttentionPatch = Callable[[Tensor, Tensor, Tensor, dict[str, Any]], Tensor]


@dataclass(frozen=True, eq=False)
class Follower:
    """A callback another pack added to our slot (the `add` protocol of IPAdapter_plus, InstantID and PuLID)."""

    callback: Callable[..., Tensor]
    arguments: dict[str, Any]

    def is_active(self, extra_options: dict[str, Any]) -> bool:
        if "sigma_start" not in self.arguments or "sigmas" not in extra_options:
            return True
        acts = SigmaRange(self.arguments["sigma_start"], self.arguments["sigma_end"]).gate(extra_options["sigmas"])
        return bool(acts)  # a foreign callback cannot be gated on the device


@dataclass(eq=False)
class IPAttentionPatch(Around):
    """Text attention plus the image branch of every adapter stacked on this site.

    Our own code never changes a patch: stacking makes a new one, and each clone of a model gets its own (`_fork`).
    Only `add`, called by other packs on the clone they just made, changes this object.

    Attributes:
        address: of the site. What its adapters do stands in the plans of the step.
        base: a foreign patch found in the slot; computes the text branch in our stead.
        networks: what must be on the device while sampling.
    """

    address: Address
    base: AttentionPatch | None = None
    networks: tuple[ModelPatcher, ...] = ()
    followers: list[Follower] = field(default_factory=list)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        precision = extra_options.get("attn_precision")
        if self.base is None:
            heads = extra_options["n_heads"]
            out: Tensor = comfy_attention.optimized_attention(
                q, k, v, heads, attn_precision=precision, transformer_options=extra_options
            )
        else:
            out = self.base(q, k, v, extra_options)
        feature_map = extra_options.get("activations_shape", (0, 0))
        out = add_images(extra_options, out, q, self.address, feature_map, precision)
        for follower in self.followers:
            if follower.is_active(extra_options):
                out = out + follower.callback(out, q, k, v, extra_options, **follower.arguments)
        return out

    def __deepcopy__(self, _memo: object) -> "IPAttentionPatch":
        """As for a clone: packs copy a model's options whole, with all patches, whose networks are not to be doubled."""
        return replace(self, followers=list(self.followers))

    def add(self, callback: Callable[..., Tensor], **kwargs: Any) -> None:
        """Protocol of other packs: also call `callback(out, q, k, v, extra_options, **kwargs)` and add its result."""
        self.followers.append(Follower(callback, kwargs))

    def models(self) -> list[ModelPatcher]:
        """Those that make the keys of single frames, and those of a foreign base."""
        return [*self.networks, *super().models()]


def install(model: ModelPatcher, sites: Sites, plan: PatchPlan, networks: tuple[ModelPatcher, ...]) -> None:
    """Put a plan into the slots of its sites; the model is a clone made for it."""
    for site in plan.sites:
        found = _at(_installed(model), site)
        if isinstance(found, IPAttentionPatch):
            patch = replace(found, networks=(*found.networks, *networks), followers=list(found.followers))
        else:
            patch = IPAttentionPatch(site.address, found, networks)
        _set(model, sites, site, patch)
    if not model.get_callbacks(CallbacksMP.ON_CLONE, KEY):
        model.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _fork)


def fill_slots(options: Mapping[str, Any], sites: Sites) -> dict[str, Any]:
    """`transformer_options` in which every site has a patch of ours; where no plan patches, it changes nothing."""
    replacements = options.get("patches_replace", {})
    slots = dict(replacements.get("attn2", {}))
    for site in sites.sites:
        found = _at(slots, site)
        if not isinstance(found, IPAttentionPatch):
            slots[site.address] = IPAttentionPatch(site.address, found)
    return {**options, "patches_replace": {**replacements, "attn2": slots}}


def _set(model: ModelPatcher, sites: Sites, site: Site, patch: IPAttentionPatch) -> None:
    # Other packs address SD1.5's sites without, and SDXL's with the layer's index; one slot must serve both.
    has_own_key = is_deep(sites.sites) or site.address in _installed(model)
    model.set_model_attn2_replace(patch, *(site.address if has_own_key else site.block))


def _installed(model: ModelPatcher) -> dict[tuple[Any, ...], AttentionPatch]:
    options = model.model_options["transformer_options"]
    slots: dict[tuple[Any, ...], AttentionPatch] = options.get("patches_replace", {}).get("attn2", {})
    return slots


def _at(slots: Mapping[Any, AttentionPatch], site: Site) -> AttentionPatch | None:
    """What ComfyUI calls at a site: the patch of its layer, else that of its block."""
    return slots.get(site.address) or slots.get(site.block)


def _fork(_model: ModelPatcher, clone: ModelPatcher) -> None:
    """Give a clone its own patch objects, so that `add` on it does not reach the model it was cloned from."""
    slots = _installed(clone)
    for key, patch in slots.items():
        if isinstance(patch, IPAttentionPatch):
            slots[key] = replace(patch, followers=list(patch.followers))
