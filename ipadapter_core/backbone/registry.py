"""The kinds of base models there are: one row each. A new one is one file here, one in `nodes/patching`, and its rows."""

from typing import cast

from torch import nn

from ..errors import MismatchError, UnsupportedFamilyError, with_article
from .anima import ANIMA
from .flux import FLUX
from .others import other_of
from .qwen_image import QWEN_IMAGE
from .row import Backbone
from .sd3 import SD3
from .sites import Sites
from .unet import UNET
from .z_image import Z_IMAGE

__all__ = ["BACKBONES", "Backbone", "base_names", "discover_sites", "find_backbone", "original"]

BACKBONES: dict[str, Backbone] = {row.name: row for row in (UNET, FLUX, SD3, ANIMA, Z_IMAGE, QWEN_IMAGE)}


def discover_sites(diffusion_model: nn.Module, made_for: str = "") -> Sites:
    """The sites of a base model, compiled or not.

    Args:
        made_for: the base model of the adapter that is to be applied, for the message.

    Raises:
        MismatchError: no kind of model known here.
    """
    plain = original(diffusion_model)
    for backbone in BACKBONES.values():
        if sites := backbone.find(plain):
            return Sites(backbone, sites, backbone.patch_size(plain))
    other = other_of(plain)
    if other is None:
        found = f"a model of class {type(plain).__name__} without cross-attention layers this project can patch"
    else:
        found = f"{with_article(other.name)} model, for which no IP-Adapter is known{f' ({other.note})' if other.note else ''}"
    raise MismatchError(
        f"an adapter for {made_for} and {found}" if made_for else found,
        expected=f"{with_article(made_for)} model" if made_for else f"one of these models: {', '.join(base_names())}",
        action="connect such a model",
    )


def base_names() -> tuple[str, ...]:
    """The base models there are rows for, in words."""
    others = (name for row in BACKBONES.values() if row is not UNET for name in row.families.values())
    return ("SD1.5", "SD2.x", "SDXL or derived from them", *dict.fromkeys(others))


def original(module: nn.Module) -> nn.Module:
    """The module itself, of one that `torch.compile` wrapped."""
    return cast(nn.Module, getattr(module, "_orig_mod", module))


def find_backbone(name: str) -> Backbone:
    """The row of a kind of base model.

    Raises:
        UnsupportedFamilyError: there is none of this name.
    """
    if name not in BACKBONES:
        raise UnsupportedFamilyError(
            f"an adapter for a base model of the kind {name!r}",
            expected=f"one of {', '.join(BACKBONES)}",
            action="update IP-Adapter Studio, or choose another adapter",
        )
    return BACKBONES[name]
