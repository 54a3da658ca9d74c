"""The image branch in models whose attention runs over one sequence of text and picture: FLUX and its kin."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from ...ipadapter_core.backbone.row import Place
from ...ipadapter_core.backbone.sites import Address
from ...ipadapter_core.branch.attention import AttentionFunction, add_to_tokens, weight_of
from ...ipadapter_core.branch.plan import PatchPlan
from ...ipadapter_core.branch.recording import Addition
from ...ipadapter_core.branch.resident import Resident
from ...ipadapter_core.branch.rows import Rows
from ...ipadapter_core.errors import MismatchError
from .noting import before_guard, held_back, note_patches, parts_of
from .run import Step


@dataclass(frozen=True)
class Part:
    """Which tokens of a sequence take the image.

    Attributes:
        first, last: from this one to before that one, of the queries.
        text: how many of them are text, before those of the picture.
        skipped: tokens the queries have in front of those of the sequence the image is added to.
        patch_size: cells of the latent on a side that make one token.
    """

    first: int
    last: int
    text: int
    skipped: int
    patch_size: int


def add_images(
    step: Step, out: Tensor, q: Tensor, address: Address, place: Place, part: Part, options: Mapping[str, Any] | None
) -> Tensor:
    """What a site gives with the image branch of every plan that acts there added.

    Args:
        out: (B, S, C).
        q: (B, H, skipped + S, D), without positions.
        options: what the site was called with; None is what the model was.

    Raises:
        MismatchError: rows or tokens that fit no pattern.
    """
    for made in images(step, q, address, place, part, options):
        before, first = before_guard(step, made.plan, out), part.first - part.skipped
        out = add_to_tokens(out, made.image, first, made.mask, made.acting, guard=made.plan.guard)
        if step.run.recording is not None:
            note_image(
                step, made, weight_of(made.mask, made.acting), held_back(out, before, first, part.last - part.first)
            )
    return out


def note_image(step: Step, made: "Image", weight: Tensor | None, held: Tensor | None) -> None:
    """Note what was added to the picture. `weight` and `held` are as those of `Addition`, for text as well."""
    text = made.part.text
    if weight is not None and weight.ndim and weight.shape[1] > 1:
        weight = weight[:, text:]
    held = held if held is None else held[:, text:]
    image, *parts = (each.transpose(1, 2).flatten(2)[:, text:] for each in (made.image, *made.parts))
    note_patches(step, Addition(made.plan, made.slot, made.rows, image, parts, weight, held), made.part.patch_size)


@dataclass(frozen=True)
class Image:
    """What a plan adds at a site.

    Attributes:
        slot: of the site in the plan.
        image: (B, H, L, D).
        mask, acting: as `mask` and `gate` of `add_image_attention`.
        rows: whose they are.
        part: of the sequence.
        parts: as `Recording.parts`; each as `image`.
    """

    plan: PatchPlan
    slot: int
    image: Tensor
    mask: Tensor | None
    acting: Tensor | None
    rows: Rows
    part: Part
    parts: tuple[Tensor, ...]


def images(
    step: Step, q: Tensor, address: Address, place: Place, part: Part, options: Mapping[str, Any] | None
) -> Iterator[Image]:
    """What every plan adds that acts at a site. Arguments and errors as those of `add_images`."""
    rows = step.rows(q.shape[0], None, None if options is None else options.get("cond_or_uncond"))
    cells = part.last - part.first - part.text
    for plan, resident, slot in step.acting(address, place, rows, q):
        asking = q[:, :, part.first : part.last]
        attend = step.attention(plan.sites[slot].heads, options, skip_output_reshape=True)
        key, value = resident.kv(slot, rows, step, each_row=True)
        image = attend(asking, key, value)
        parts = parts_of(step, plan, slot, value, partial(_attend_to_part, attend, asking, key, value))
        mask = patch_mask(step, resident, rows, cells, part.patch_size, part.text)
        yield Image(plan, slot, image, mask, step.gate(plan, image), rows, part, parts)


def _attend_to_part(attend: AttentionFunction, asking: Tensor, key: Tensor, value: Tensor, of_tokens: Tensor) -> Tensor:
    return attend(asking, key, value * of_tokens[:, None])


def patch_mask(step: Step, resident: Resident, rows: Rows, cells: int, patch_size: int, text: int = 0) -> Tensor | None:
    """The mask of a plan where tokens are patches of the latent, (1 or B, text + L, 1); None if there is none.

    Args:
        cells: tokens of the picture, L; those of a video's pictures lie one behind the other.
        patch_size: cells of the latent on a side that make one token.
        text: as `Resident.mask`.

    Raises:
        MismatchError: nobody told how large the picture is; or as `Resident.mask`.
    """
    if resident.plan.mask is None:
        return None
    if not all(step.size):
        raise MismatchError(
            "a network that another node calls by itself, and an IP-Adapter with a mask on it",
            expected="a call by ComfyUI's sampler, which tells how large the picture is",
            action="remove the mask of the IP-Adapter, or the node that calls the network",
        )
    grid = [-(-size // patch_size) for size in step.size]
    shown = step.size if any(size % patch_size for size in step.size) else None
    times = cells // (grid[0] * grid[1]) or 1
    mask = resident.mask(grid, cells // times, rows, step.frames, text, shown)
    return mask if mask is None or times == 1 else mask.repeat(1, times, 1)
