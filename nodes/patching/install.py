"""How a plan is hung into a model: one row for each kind of base model."""

from collections.abc import Callable
from functools import partial

from comfy.model_patcher import ModelPatcher

from ...ipadapter_core.backbone.registry import discover_sites, original
from ...ipadapter_core.backbone.sites import Sites
from ...ipadapter_core.branch.plan import PatchPlan
from . import anima, flux, qwen_image, sd3, unet, z_image
from .applied import KEY, Applied, Hooked, applied_to
from .hooks import check_hooks
from .replacement import FillSlots, install_in_slots
from .wrappers import add_wrappers

# Puts the plan of sites into a clone of the model, and has networks brought to the device for sampling.
Install = Callable[[ModelPatcher, Sites, PatchPlan, tuple[ModelPatcher, ...]], None]

# a kind that needs no patch at every site has no row here
FILL_SLOTS: dict[str, FillSlots] = {
    "UNet": unet.fill_slots,
    "FLUX": flux.fill_slots,
    "SD3": sd3.fill_slots,
    "Anima": anima.fill_slots,
    "Z-Image": z_image.fill_slots,
    "Qwen-Image": qwen_image.fill_slots,
}
INSTALL: dict[str, Install] = {
    "UNet": unet.install,
    "FLUX": partial(install_in_slots, flux.fill_slots),
    "SD3": partial(install_in_slots, sd3.fill_slots),
    "Anima": anima.install,
    "Z-Image": partial(install_in_slots, z_image.fill_slots),
    "Qwen-Image": partial(install_in_slots, qwen_image.fill_slots),
}
HOOKED: dict[str, Hooked] = {"Anima": anima.hooked}


def install(
    model: ModelPatcher, sites: Sites, plan: PatchPlan, networks: tuple[ModelPatcher, ...] = ()
) -> ModelPatcher:
    """A clone of the model with the plan; the model itself, and every clone made from it before, stay as they are.

    Args:
        networks: what the plan's keys and values are made with while sampling, if anything.
    """
    name, clone = sites.backbone.name, model.clone()
    network = original(clone.get_model_object("diffusion_model"))
    check_hooks(name, network)
    INSTALL[name](clone, sites, plan, networks)
    options = clone.model_options["transformer_options"]
    before = applied_to(options)
    plans = (*(before.plans if before else ()), plan)
    whole = before.sites if before else discover_sites(network)
    options[KEY] = Applied(
        whole, plans, clone.get_model_object("model_sampling"), network, FILL_SLOTS.get(name), HOOKED.get(name)
    )
    add_wrappers(clone)
    return clone
