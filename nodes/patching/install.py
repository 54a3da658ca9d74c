"""How a plan is hung into a model: one row for each kind of base model."""

from collections.abc import Callable

from comfy.model_patcher import ModelPatcher

from ...ipadapter_core.backbone.sites import Sites
from ...ipadapter_core.branch.plan import PatchPlan
from . import unet
from .run import PLANS, SAMPLING, add_wrappers

# Puts the plan of sites into a clone of the model, and has the networks brought to the device for sampling.
Install = Callable[[ModelPatcher, Sites, PatchPlan, tuple[ModelPatcher, ...]], None]

INSTALL: dict[str, Install] = {"UNet": unet.install}


def install(
    model: ModelPatcher, sites: Sites, plan: PatchPlan, networks: tuple[ModelPatcher, ...] = ()
) -> ModelPatcher:
    """A clone of the model with the plan; the model itself, and every clone made from it before, stay as they are.

    Args:
        networks: what the plan's keys and values are made with while sampling, if anything.
    """
    clone = model.clone()
    INSTALL[sites.backbone.name](clone, sites, plan, networks)
    options = clone.model_options["transformer_options"]
    options[PLANS] = (*options.get(PLANS, ()), plan)
    options[SAMPLING] = clone.get_model_object("model_sampling")
    add_wrappers(clone)
    return clone
