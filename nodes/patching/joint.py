"""The image branch in models whose attention over text and picture it runs beside, over the picture's own keys: SD3."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...ipadapter_core.backbone.row import Place
from ...ipadapter_core.backbone.sites import Address
from ...ipadapter_core.branch.attention import AttentionFunction, add_to_tokens, weight_of
from ...ipadapter_core.branch.recording import Addition
from ...ipadapter_core.branch.timed import joint_attention
from .noting import before_guard, held_back, note_patches, parts_of
from .run import Step
from .sequence import patch_mask


@dataclass(frozen=True)
class Own:
    """What a block's attention is called with.

    Attributes:
        q, k, v: (B, S, H·D), heads split or not, text first.
        text: how many tokens are text.
        patch_size: cells of the latent on a side that make one token.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    text: int
    patch_size: int


def add_images(step: Step, out: Tensor, own: Own, address: Address, options: Mapping[str, Any] | None) -> Tensor:
    """What a block's attention gives with the image branch of every plan that acts there added to its picture.

    Args:
        out: (B, S, C); changed in place.
        options: what the block was called with; None is what the model was.

    Raises:
        MismatchError: rows or tokens that fit no pattern.
    """
    rows = step.rows(own.q.shape[0], None, None if options is None else options.get("cond_or_uncond"))
    for plan, resident, slot in step.acting(address, Place.ATTENTION, rows, own.q):
        site = plan.sites[slot]
        q, k, v = (
            part[:, own.text :].reshape(part.shape[0], -1, site.heads, site.head_dim) for part in (own.q, own.k, own.v)
        )
        of_query, of_key = resident.exchanges(slot, step.network)
        # low precision: as long as the block's own
        attend = step.attention(site.heads, options, low_precision=True, skip_output_reshape=True)
        keys = resident.kv(slot, rows, step, each_row=True)
        asking, own_key = of_query(q), of_key(k)
        image = joint_attention(asking, (own_key, v), keys, attend)
        mask = patch_mask(step, resident, rows, q.shape[1], own.patch_size)
        strength, of_rows = resident.strength(slot, rows, step.frames)
        gate = step.gate(plan, image)
        if of_rows is not None:
            gate = of_rows if gate is None else of_rows * gate
        before = before_guard(step, plan, out)
        out = add_to_tokens(out, image, own.text, mask, gate, strength, plan.guard)
        if step.run.recording is not None:
            attend_to = partial(_attend_to_part, attend, asking, own_key, v, keys)
            made = (image, *parts_of(step, plan, slot, keys[1].transpose(1, 2), attend_to))
            whole, *parts = (strength * each.transpose(1, 2).flatten(2) for each in made)
            held = held_back(out, before, own.text, whole.shape[1])
            note_patches(step, Addition(plan, slot, rows, whole, parts, weight_of(mask, gate), held), own.patch_size)
    return out


def _attend_to_part(
    attend: AttentionFunction,
    asking: Tensor,
    own_key: Tensor,
    own_value: Tensor,
    images: tuple[Tensor, Tensor],
    of_tokens: Tensor,
) -> Tensor:
    key, value = images
    return joint_attention(
        asking, (own_key, torch.zeros_like(own_value)), (key, value * of_tokens[:, None, None]), attend
    )
