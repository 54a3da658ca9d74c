"""How a plan is hung into Z-Image: a patch behind its layers for the picture alone notes where the picture lies in what
follows, and an override of the attention adds to the layers over text and picture.

ComfyUI asks no patch for the queries, and its override gets them with positions. The patch gets these positions, so that
they can be taken out again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from comfy.ldm.flux.math import apply_rope1
from torch import Tensor

from ...ipadapter_core.backbone.row import Place
from ...ipadapter_core.backbone.sites import Address, Sites
from .applied import KEY, OVERRIDE
from .compiled import operation, running_step
from .run import Step, step_of
from .sequence import Part, add_images

_GROUP = "block"
_AFTER = "noise_refiner"  # the list of patches behind each layer for the picture alone
_PICTURE = f"{KEY}_picture"  # in the options of a forward; of a compiled one, in `Step.left`
Override = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Picture:
    """Where a picture lies in the sequence of text and picture.

    Attributes:
        shortest: tokens the sequence has at least: what comes before the picture may be longer.
        behind: tokens from the picture's first to the sequence's end: its own, and padding.
        turns: (1 or B, 1, L, D / 2, 2, 2), which take the positions out of its queries.
    """

    shortest: int
    behind: int
    turns: Tensor


@dataclass(frozen=True, eq=False)
class NotePicture:
    """In the list `noise_refiner`: where the picture is.

    Attributes:
        patch_size: cells of the latent on a side that make one token.
    """

    patch_size: int

    def __call__(self, arguments: dict[str, Any]) -> dict[str, Any]:
        height, width = (size // self.patch_size for size in arguments["x"].shape[-2:])
        img, positions = arguments["img"], arguments["pe"]
        shortest = arguments["txt"].shape[1] + img.shape[1]
        if torch.compiler.is_compiling():
            return {"img": _note_operation(img, positions, height * width, shortest)}
        options = arguments["transformer_options"]
        options[_PICTURE] = _find(step_of(options), positions, height * width, shortest)
        return {}


@dataclass(frozen=True, eq=False)
class AddToAttention:
    """As the attention override: adds what acts on the layers over text and picture.

    Attributes:
        patch_size: cells of the latent on a side that make one token.
        base: an override of another pack found in its place; runs in the attention's stead.
    """

    patch_size: int
    base: Override | None = None

    def __call__(self, attention: Override, q: Tensor, *inputs: Any, **named: Any) -> Tensor:
        out = attention(q, *inputs, **named) if self.base is None else self.base(attention, q, *inputs, **named)
        if torch.compiler.is_compiling():
            return cast(Tensor, _attention_operation(out, q, self.patch_size))
        options: dict[str, Any] = named.get("transformer_options") or {}
        picture: Picture | None = options.get(_PICTURE)
        if picture is None or q.shape[2] < picture.shortest:  # over text or picture alone, or our own
            return out
        number = options["block_index"]
        if number == options["total_blocks"] - 1:
            del options[_PICTURE]  # another forward with these options has another picture
        out = out if self.base is None else out.clone()  # another pack may keep what it gave
        return _add(step_of(options), picture, out, q, self.patch_size, (_GROUP, number, 0), options)


def fill_slots(options: Mapping[str, Any], sites: Sites) -> dict[str, Any]:
    """`transformer_options` with our patch behind, and our override around, those of other packs."""
    lists = options.get("patches", {})
    foreign = [patch for patch in lists.get(_AFTER, ()) if not isinstance(patch, NotePicture)]
    override = options.get(OVERRIDE)
    if not isinstance(override, AddToAttention):
        override = AddToAttention(sites.patch_size, override)
    return {**options, "patches": {**lists, _AFTER: [*foreign, NotePicture(sites.patch_size)]}, OVERRIDE: override}


def _find(step: Step, positions: Tensor, cells: int, shortest: int) -> Picture:
    """Where the picture lies, at the end of what it is padded to.

    Args:
        positions: (1 or B, S, 1, D / 2, 2, 2), rotations, of reference latents too, which lie before it.
        cells: tokens of the picture.
    """
    multiple = getattr(step.network, "pad_tokens_multiple", None) or 1
    behind = -(-cells // multiple) * multiple
    first = positions.shape[1] - behind
    turns = positions[:, first : first + cells].movedim(1, 2)
    (cosine, _), (sine, _) = (row.unbind(-1) for row in turns.unbind(-2))
    length = cosine.square() + sine.square()  # packs that stretch positions make it more than 1
    back = turns.transpose(-1, -2) / length[..., None, None]
    return Picture(shortest, behind, back.contiguous())


def _add(
    step: Step,
    picture: Picture,
    out: Tensor,
    q: Tensor,
    patch_size: int,
    address: Address,
    options: Mapping[str, Any] | None,
) -> Tensor:
    if not step.acts(address, Place.ATTENTION):
        return out
    first, cells = q.shape[2] - picture.behind, picture.turns.shape[2]
    asking = apply_rope1(q[:, :, first : first + cells], picture.turns)
    return add_images(step, out, asking, address, Place.ATTENTION, Part(0, cells, 0, -first, patch_size), options)


def _note_compiled(img: Tensor, positions: Tensor, cells: int, shortest: int) -> Tensor:
    step = running_step()
    step.left[_PICTURE] = _find(step, positions, cells, shortest)
    return img.clone()  # what follows is made of it, so that compiled code keeps the order


def _attention_compiled(out: Tensor, q: Tensor, patch_size: int) -> Tensor:
    step = running_step()
    picture: Picture | None = step.left.get(_PICTURE)
    if picture is None or q.shape[2] < picture.shortest:
        return out.clone()  # an operation must not hand out its input
    address = step.next_site(q.shape[1] * q.shape[3], Place.ATTENTION, _GROUP)
    return _add(step, picture, out.clone(), q, patch_size, address, None)


_note_operation = operation(
    "note_picture", _note_compiled, lambda img, _positions, _cells, _shortest: torch.empty_like(img)
)
_attention_operation = operation(
    "add_behind_text", _attention_compiled, lambda out, _q, _patch_size: torch.empty_like(out)
)
