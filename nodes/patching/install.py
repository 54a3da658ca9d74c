"""How a plan is hung into a model: one row for each kind of base model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...ipadapter_core.backbone.sites import Sites
from ...ipadapter_core.branch.plan import PatchPlan
from . import unet
from .applied import KEY, Applied, applied_to
from .wrappers import add_wrappers


@dataclass(frozen=True)
class Half:
    """ComfyUI's half of a kind of base model.

    Attributes:
        install: puts a plan into a clone of the model, and has networks brought to the device for sampling.
        fill_slots: see `Applied`; the options themselves where a compiled model needs nothing.
    """

    install: Callable[[ModelPatcher, Sites, PatchPlan, tuple[ModelPatcher, ...]], None]
    fill_slots: Callable[[Mapping[str, Any], Sites], dict[str, Any]] = lambda options, _sites: dict(options)


INSTALL: dict[str, Half] = {"UNet": Half(unet.install, unet.fill_slots)}


def install(
    model: ModelPatcher, sites: Sites, plan: PatchPlan, networks: tuple[ModelPatcher, ...] = ()
) -> ModelPatcher:
    """A clone of the model with the plan; the model itself, and every clone made from it before, stay as they are.

    Args:
        networks: what the plan's keys and values are made with while sampling, if anything.
    """
    half, clone = INSTALL[sites.backbone.name], model.clone()
    half.install(clone, sites, plan, networks)
    options = clone.model_options["transformer_options"]
    before = applied_to(options)
    plans = (*(before.plans if before else ()), plan)
    options[KEY] = Applied(sites, plans, clone.get_model_object("model_sampling"), half.fill_slots)
    add_wrappers(clone)
    return clone
