"""How a plan is hung into SD3 and SD3.5: around every joint block, an override of the attention that runs in it.

ComfyUI gives the blocks of these models no number, so a replacement for each block carries it. The override lies in a copy
of the options, handed to the block alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...ipadapter_core.backbone.sites import Address, Sites
from .applied import OVERRIDE
from .compiled import add_to_joint
from .joint import Own
from .replacement import BLOCKS, Replacement

_SLOT = "double_block"  # what ComfyUI calls the slot of a joint block


@dataclass(frozen=True, eq=False)
class AddToAttention:
    """In place of the attention in one block: runs it, and adds what acts on it.

    Attributes:
        address: of the block.
        patch_size: cells of the latent on a side that make one token.
        options: those the block was called with. The image's own attention runs with them, or it would come here again.
        text, picture: tokens the block was called with.
    """

    address: Address
    patch_size: int
    options: dict[str, Any]
    text: int
    picture: int

    def __call__(
        self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **named: Any
    ) -> Tensor:
        if "transformer_options" in named:
            named["transformer_options"] = self.options
        theirs = self.options.get(OVERRIDE)
        out = attention(q, k, v, *args, **named) if theirs is None else theirs(attention, q, k, v, *args, **named)
        if q.shape[1] != self.text + self.picture:  # the picture's attention to itself alone (SD3.5-Medium)
            return out
        out = out if theirs is None else out.clone()  # another pack may keep what it gave
        return add_to_joint(self.options, out, Own(q, k, v, self.text, self.patch_size), self.address)


@dataclass(frozen=True, eq=False)
class AddToBlock(Replacement):
    """In a slot of `patches_replace`: runs a joint block with an override of ours in it."""

    def __call__(self, arguments: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        original = extra["original_block"]

        def run(given: dict[str, Any]) -> dict[str, Any]:
            options = given["transformer_options"]
            lengths = (given["txt"].shape[1], given["img"].shape[1])
            override = AddToAttention(self.address, self.patch_size, options, *lengths)
            out: dict[str, Any] = original({**given, "transformer_options": {**options, OVERRIDE: override}})
            return out

        if self.base is None:
            return run(arguments)
        return self.base(arguments, {**extra, "original_block": run})


def fill_slots(options: Mapping[str, Any], sites: Sites) -> dict[str, Any]:
    """`transformer_options` in which every site has a patch of ours, around those of other packs."""
    replacements = options.get("patches_replace", {})
    blocks = dict(replacements.get(BLOCKS, {}))
    for site in sites.sites:
        key = (_SLOT, site.address[1])
        if not isinstance(found := blocks.get(key), AddToBlock):
            blocks[key] = AddToBlock(site.address, sites.patch_size, found)
    return {**options, "patches_replace": {**replacements, BLOCKS: blocks}}
