"""What stands in a block's slot of `patches_replace`, whatever is done there, and what a sampling needs on the device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from comfy.model_patcher import ModelPatcher

from ...ipadapter_core.backbone.sites import Address

BLOCKS = "dit"  # the kind of slot
BlockReplacement = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
_SomeReplacement = TypeVar("_SomeReplacement", bound="Replacement")


@dataclass(frozen=True, eq=False)
class Replacement:
    """What ours have in common.

    Attributes:
        address: of the block.
        patch_size: cells of the latent on a side that make one token.
        base: a replacement of another pack found in the slot; runs in the block's stead.
    """

    address: Address
    patch_size: int
    base: BlockReplacement | None = None

    def to(self: _SomeReplacement, device_or_dtype: torch.device | torch.dtype) -> _SomeReplacement:
        """ComfyUI calls this with a device, then with a dtype; ours has nothing to move."""
        move = getattr(self.base, "to", None)
        moved = self.base if move is None else move(device_or_dtype)
        return self if moved is self.base else replace(self, base=moved)

    def models(self) -> list[ModelPatcher]:
        """What a foreign base needs on the device."""
        theirs = getattr(self.base, "models", None)
        return [] if theirs is None else list(theirs())

    def cleanup(self) -> None:
        """ComfyUI calls this after sampling; what a foreign base keeps is its own business."""
        if (clean := getattr(self.base, "cleanup", None)) is not None:
            clean()


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
