"""What stands in a block's slot of `patches_replace`, whatever is done there, and what a sampling needs on the device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...ipadapter_core.backbone.sites import Address, Sites
from ...ipadapter_core.branch.plan import PatchPlan
from .applied import KEY
from .around import Around

BLOCKS = "dit"  # the kind of slot
BlockReplacement = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
# `transformer_options` in which every site has a patch of ours, for a compiled model; see `Applied`.
FillSlots = Callable[[Mapping[str, Any], Sites], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Replacement(Around):
    """What ours around blocks have in common.

    Attributes:
        address: of the block.
        patch_size: cells of the latent on a side that make one token.
        base: a replacement of another pack found in the slot; runs in the block's stead.
    """

    address: Address
    patch_size: int
    base: BlockReplacement | None = None


def install_in_slots(
    fill_slots: FillSlots, model: ModelPatcher, sites: Sites, plan: PatchPlan, networks: tuple[ModelPatcher, ...]
) -> None:
    """Fill the slots of a plan's sites in a clone made for it: all that a kind needs whose patches serve every plan."""
    options = model.model_options["transformer_options"]
    options.update(fill_slots(options, replace(sites, sites=plan.sites)))
    if networks:
        model.set_model_patch(Networks(networks), KEY)


@dataclass(frozen=True, eq=False)
class Networks:
    """In a list of patches that no model asks for: what ComfyUI has to bring to the device for sampling."""

    networks: tuple[ModelPatcher, ...]

    def __deepcopy__(self, _memo: object) -> "Networks":
        """Itself: packs copy a model's options whole, and networks are not to be doubled."""
        return self

    def models(self) -> list[ModelPatcher]:
        """ComfyUI asks every patch for this."""
        return list(self.networks)
