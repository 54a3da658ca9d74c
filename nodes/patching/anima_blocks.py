"""The image branch in Anima's blocks: made at the cross-attention, and added there or later in the block.

Each function does its work on the step of a call of the model, at once or, in compiled code, as an operation the compiler
does not look into: what stands in `transformer_options`, or in Python, is not watched there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...ipadapter_core.backbone.row import Place
from ...ipadapter_core.backbone.sites import Address
from ...ipadapter_core.branch.attention import add_to_tokens, weight_of
from .compiled import Operation, running_step
from .noting import before_guard, held_back
from .run import Step, step_of
from .sequence import Image, Part, add_images, images, note_image

GROUP = "block"
_CROSSING = "crossing"  # in `Step.left`: address of the block whose cross-attention is about to run
_WAITING = "waiting"  # likewise: what the places of a block that come later have to add
_LATER = (Place.BEFORE_MLP, Place.BLOCK)


@dataclass(frozen=True)
class Waiting:
    """Images of one block that are added at a place."""

    images: tuple[Image, ...]


def note_crossing(options: Mapping[str, Any], context: Tensor, number: int) -> Tensor:
    """Say that the next attention is the cross-attention of a block.

    Returns:
        The context to go on with, so that compiled code keeps the order.
    """
    if torch.compiler.is_compiling():
        return _note_operation(context)
    _note(step_of(options), number)
    return context


def crossing_of(options: Mapping[str, Any]) -> Address | None:
    """The block whose cross-attention runs now, asked once, before it runs; compiled code cannot tell."""
    return None if torch.compiler.is_compiling() else step_of(options).left.pop(_CROSSING, None)


def add_at_attention(
    options: Mapping[str, Any], out: Tensor, q: Tensor, patch_size: int, address: Address | None
) -> Tensor:
    """What an attention gives, with what acts there if it is a cross-attention; images for later places are made as well.

    Args:
        address: as `crossing_of` gave it.
        out: (B, L, C).
        q: (B, H, L, D).
        patch_size: cells of the latent on a side that make one token.
    """
    if torch.compiler.is_compiling():
        return _attention_operation(out, q, patch_size)
    return out if address is None else _add_at_attention(step_of(options), out, q, patch_size, address, options)


def add_later(options: Mapping[str, Any], out: Tensor, embedding: Tensor, place: Place) -> Tensor:
    """What a block holds at a place, with what waits for it.

    Args:
        out: (B, L, C).
        embedding: (B, 1 or T, C), of the timestep.
    """
    if torch.compiler.is_compiling():
        return _later_operation(out, embedding, place.value)
    return _add_later(step_of(options), out, embedding, place)


def _note(step: Step, number: int) -> None:
    step.left[_CROSSING] = (GROUP, number, 0)


def _add_at_attention(
    step: Step, out: Tensor, q: Tensor, patch_size: int, address: Address, options: Mapping[str, Any] | None
) -> Tensor:
    if step.is_compiled:
        address = step.next_site(q.shape[1] * q.shape[3], Place.ATTENTION, GROUP)
    part = Part(0, q.shape[2], 0, 0, patch_size)
    waiting = {place: Waiting(tuple(images(step, q, address, place, part, options))) for place in _LATER}
    step.left[_WAITING] = {place: found for place, found in waiting.items() if found.images}
    return add_images(step, out, q, address, Place.ATTENTION, part, options)


def _add_later(step: Step, out: Tensor, embedding: Tensor, place: Place) -> Tensor:
    waiting: Waiting | None = step.left.get(_WAITING, {}).pop(place, None)
    for made in waiting.images if waiting else ():
        gates = made.plan.gates
        weight = made.acting
        if gates:
            channels = _per_token(gates[made.slot](embedding).to(out.dtype), out)
            weight = channels if weight is None else channels * weight
        before = before_guard(step, made.plan, out)
        out = add_to_tokens(out, made.image.to(out.dtype), 0, made.mask, weight, guard=made.plan.guard)
        if step.run.recording is not None:
            note_image(step, made, weight_of(made.mask, weight), held_back(out, before, 0, out.shape[1]))
    return out


def _per_token(factors: Tensor, like: Tensor) -> Tensor:
    """(B, T, C) as (B, L, C), or (B, 1, C) where one serves all."""
    times = factors.shape[1]
    return factors if times == 1 else factors.repeat_interleave(like.shape[1] // times, dim=1)


def _note_compiled(context: Tensor) -> Tensor:
    _note(running_step(), 0)  # which block it is, code made for another cannot tell
    return context.clone()


def _attention_compiled(out: Tensor, q: Tensor, patch_size: int) -> Tensor:
    step = running_step()
    address: Address | None = step.left.pop(_CROSSING, None)
    added = out if address is None else _add_at_attention(step, out, q, patch_size, address, None)
    return out.clone() if added is out else added  # an operation must not hand out its input


def _later_compiled(out: Tensor, embedding: Tensor, place: str) -> Tensor:
    added = _add_later(running_step(), out, embedding, Place(place))
    return out.clone() if added is out else added


_note_operation = Operation("note_crossing", _note_compiled, torch.empty_like)
_attention_operation = Operation(
    "add_at_attention", _attention_compiled, lambda out, _q, _patch_size: torch.empty_like(out)
)
_later_operation = Operation("add_later", _later_compiled, lambda out, _embedding, _place: torch.empty_like(out))
