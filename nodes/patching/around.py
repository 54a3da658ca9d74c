"""A patch of ours around one of another pack, found in its slot: what ComfyUI asks of ours, it asks of that."""

from dataclasses import replace
from typing import Any, ClassVar, TypeVar

import torch
from comfy.model_patcher import ModelPatcher

_Patch = TypeVar("_Patch", bound="Around")


class Around:
    """For dataclasses.

    Attributes:
        base: the other patch; None where the slot was empty.
    """

    base: Any = None
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def to(self: _Patch, device_or_dtype: torch.device | torch.dtype) -> _Patch:
        """ComfyUI calls this with a device, then with a dtype; ours has nothing to move, a foreign base may have."""
        move = getattr(self.base, "to", None)
        moved = self.base if move is None else move(device_or_dtype)
        return self if moved is self.base else replace(self, base=moved)

    def models(self) -> list[ModelPatcher]:
        """Networks that a foreign base needs while sampling."""
        theirs = getattr(self.base, "models", None)
        return [] if theirs is None else list(theirs())

    def cleanup(self) -> None:
        """ComfyUI calls this after sampling; what a foreign base keeps is its own business."""
        if (clean := getattr(self.base, "cleanup", None)) is not None:
            clean()
