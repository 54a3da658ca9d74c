"""How a plan is hung into FLUX and Chroma: ComfyUI's patches of the attention, and a replacement around double blocks.

InstantX's adapters add to what the attention gives, XLabs' to what a whole double block gives; both ask with the queries
of the block's attention, as they are before positions are put into them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...ipadapter_core.backbone.row import Place
from ...ipadapter_core.backbone.sites import Sites
from .applied import OVERRIDE
from .compiled import add_to_sequence
from .queries import BEFORE, HOLDER, QUERIES, KeepQueries, picture
from .replacement import BLOCKS, Replacement
from .sequence import Part

_AFTER = "attn1_output_patch"
_DOUBLE = "double"


@dataclass(frozen=True, eq=False)
class AddToAttention:
    """In the list `attn1_output_patch`: adds what acts on the attention of a block.

    Attributes:
        patch_size: cells of the latent on a side that make one token.
    """

    patch_size: int

    def __call__(self, attention: Tensor, extra_options: dict[str, Any]) -> Tensor:
        q: Tensor = extra_options[QUERIES]
        first, last = picture(extra_options, q.shape[2])
        group: str = extra_options["block_type"]
        # in single blocks the text asks as well: so were they trained
        part = (
            Part(first, last, 0, 0, self.patch_size) if group == _DOUBLE else Part(0, last, first, 0, self.patch_size)
        )
        address = (group, extra_options["block_index"], 0)
        if OVERRIDE in extra_options:  # another pack may keep what it gave
            attention = attention.clone()
        return add_to_sequence(extra_options, attention, q, address, Place.ATTENTION, part)


@dataclass(frozen=True, eq=False)
class AddToBlock(Replacement):
    """In a slot of `patches_replace`: runs a double block, and adds what acts on all of it."""

    def __call__(self, arguments: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        holder: list[tuple[Tensor, int, int]] = []
        options = {**arguments["transformer_options"], HOLDER: holder}
        given = {**arguments, "transformer_options": options}
        out: dict[str, Any] = extra["original_block"](given) if self.base is None else self.base(given, extra)
        if not holder:  # another pack gave what the block gave before
            return out
        q, first, last = holder[-1]
        part = Part(first, last, 0, first, self.patch_size)
        img = out["img"] if self.base is None else out["img"].clone()  # another pack may keep what it gave
        return {**out, "img": add_to_sequence(options, img, q, self.address, Place.BLOCK, part)}


def fill_slots(options: Mapping[str, Any], sites: Sites) -> dict[str, Any]:
    """`transformer_options` in which every site has patches of ours, behind and around those of other packs."""
    lists, replacements = options.get("patches", {}), options.get("patches_replace", {})
    lists = {
        **lists,
        BEFORE: [*_foreign(lists.get(BEFORE, ())), KeepQueries()],
        _AFTER: [*_foreign(lists.get(_AFTER, ())), AddToAttention(sites.patch_size)],
    }
    blocks = dict(replacements.get(BLOCKS, {}))
    for site in sites.sites:
        key = (f"{site.group}_block", site.address[1])
        if site.group == _DOUBLE and not isinstance(found := blocks.get(key), AddToBlock):
            blocks[key] = AddToBlock(site.address, sites.patch_size, found)
    return {**options, "patches": lists, "patches_replace": {**replacements, BLOCKS: blocks}}


def _foreign(patches: Iterable[Any]) -> list[Any]:
    return [patch for patch in patches if not isinstance(patch, KeepQueries | AddToAttention)]
