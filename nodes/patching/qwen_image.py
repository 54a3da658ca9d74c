"""How a plan is hung into Qwen-Image: ComfyUI's patch of the attention keeps its queries, an override of it adds to it.

Only the patch sees the queries without positions, and only the override what the attention gives. Around every block a
replacement makes an override of its own, in a copy of the options, handed to the block alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...ipadapter_core.backbone.row import Place
from ...ipadapter_core.backbone.sites import Address, Sites
from .applied import OVERRIDE
from .compiled import add_to_sequence
from .queries import BEFORE, HOLDER, KeepQueries
from .replacement import BLOCKS, Replacement
from .sequence import Part

_SLOT = "double_block"  # what ComfyUI calls the slot of a block


@dataclass(frozen=True, eq=False)
class AddToAttention:
    """In place of the attention in one block: runs it, and adds what acts on it.

    Attributes:
        address: of the block.
        patch_size: cells of the latent on a side that make one token.
        options: those the block was called with. The image's own attention runs with them, or it would come here again.
        holder: the queries, and the tokens of the picture among them, once the block's patches were asked.
    """

    address: Address
    patch_size: int
    options: dict[str, Any]
    holder: list[tuple[Tensor, int, int]]

    def __call__(self, attention: Callable[..., Tensor], q: Tensor, *inputs: Any, **named: Any) -> Tensor:
        if "transformer_options" in named:
            named["transformer_options"] = self.options
        theirs = self.options.get(OVERRIDE)
        out = attention(q, *inputs, **named) if theirs is None else theirs(attention, q, *inputs, **named)
        if not self.holder:
            return out
        asking, first, last = self.holder[-1]
        out = out if theirs is None else out.clone()  # another pack may keep what it gave
        part = Part(first, last, 0, 0, self.patch_size)
        return add_to_sequence(self.options, out, asking, self.address, Place.ATTENTION, part)


@dataclass(frozen=True, eq=False)
class AddToBlock(Replacement):
    """In a slot of `patches_replace`: runs a block with an override of ours in it."""

    def __call__(self, arguments: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        original = extra["original_block"]

        def run(given: dict[str, Any]) -> dict[str, Any]:
            options: dict[str, Any] = given["transformer_options"]
            holder: list[tuple[Tensor, int, int]] = []
            override = AddToAttention(self.address, self.patch_size, options, holder)
            inside = {**options, HOLDER: holder, OVERRIDE: override}
            out: dict[str, Any] = original({**given, "transformer_options": inside})
            return out

        if self.base is None:
            return run(arguments)
        return self.base(arguments, {**extra, "original_block": run})


def fill_slots(options: Mapping[str, Any], sites: Sites) -> dict[str, Any]:
    """`transformer_options` in which every site has patches of ours, behind and around those of other packs."""
    lists, replacements = options.get("patches", {}), options.get("patches_replace", {})
    foreign = [patch for patch in lists.get(BEFORE, ()) if not isinstance(patch, KeepQueries)]
    blocks = dict(replacements.get(BLOCKS, {}))
    for site in sites.sites:
        key = (_SLOT, site.address[1])
        if not isinstance(found := blocks.get(key), AddToBlock):
            blocks[key] = AddToBlock(site.address, sites.patch_size, found)
    return {
        **options,
        "patches": {**lists, BEFORE: [*foreign, KeepQueries()]},
        "patches_replace": {**replacements, BLOCKS: blocks},
    }
