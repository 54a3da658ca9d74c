"""Which rows of a sampler's batch are cond and which uncond, and which frames of an animation its latents are.

`cond_or_uncond` only numbers the lists a guider hands to the sampler: DualCFG's first one is its negative, PerpNeg's
third one is empty, self-attention guidance runs the negative alone as number 0. So the guider is asked what each
conditioning is, once per step and on the host.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...ipadapter_core.branch.plan import COND

UNCOND = 1
SIDES = "ipadapter_studio_sides"  # in transformer_options: side by the uuid of a conditioning
# What guiders call their conditionings. DualCFG's middle one is what the positive is compared with, so it goes without
# the image, as ComfyUI counts it among the negatives.
_SIDE_OF_NAME = {"positive": COND, "negative": UNCOND, "middle": UNCOND, "empty_negative_prompt": UNCOND}


def sides_of(conds: Mapping[str, Iterable[Mapping[str, Any]] | None]) -> dict[object, int | None]:
    """Side of every conditioning of a guider, by uuid; None if it is on both, as the copies made for areas are."""
    sides: dict[object, int | None] = {}
    for name, side in _SIDE_OF_NAME.items():
        for conditioning in conds.get(name) or ():
            uuid = conditioning.get("uuid")
            sides[uuid] = side if sides.get(uuid, side) == side else None
    return sides


def note_sides(
    executor: Callable[..., Any], x: Any, timestep: Any, model_options: dict[str, Any], *more: Any, **named: Any
) -> Any:
    """PREDICT_NOISE wrapper: leave the sides of the guider's conditionings where the patches find them."""
    guider = executor.class_obj  # type: ignore[attr-defined]  # a WrapperExecutor
    sides = sides_of(guider.conds)
    options = {**model_options.get("transformer_options", {}), SIDES: sides}
    return executor(x, timestep, {**model_options, "transformer_options": options}, *more, **named)


def conditions(options: Mapping[str, Any]) -> tuple[int, ...]:
    """`COND` or `UNCOND` of every conditioning group in batch order.

    Args:
        options: `transformer_options`; a call outside a sampler has one group, the cond one.
    """
    numbers = options.get("cond_or_uncond") or (COND,)
    sides, uuids = options.get(SIDES), options.get("uuids", ())
    if not sides or len(uuids) != len(numbers):
        return tuple(_by_number(number) for number in numbers)
    found = (sides.get(uuid) for uuid in uuids)
    return tuple(_by_number(number) if side is None else side for number, side in zip(numbers, found, strict=True))


def frames(options: Mapping[str, Any], latents: int) -> tuple[int, ...]:
    """Number of each latent of a group among all that are sampled: ComfyUI's context window, else AnimateDiff's."""
    window = options.get("context_window")
    if window is None:
        numbers = (options.get("ad_params") or {}).get("sub_idxs")
    else:
        anchor = getattr(window, "causal_anchor_index", None)  # a frame before the window, sampled with it
        numbers = window.index_list if anchor is None else [anchor, *window.index_list]
    return tuple(range(latents) if numbers is None or len(numbers) != latents else numbers)


def _by_number(number: int) -> int:
    """Without a guider that is known: 1 is uncond; a third one is a second cond, as IPAdapter_plus has it."""
    return UNCOND if number == UNCOND else COND
