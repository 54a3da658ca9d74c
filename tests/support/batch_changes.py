"""What packs do to ComfyUI's batch, as MODELs do it: attention couples, regions, and tile wrappers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

UNCOND_NUMBER = 1


def couple(model: Any, texts: Sequence[Tensor]) -> Any:
    """As attention couples: in cross-attention the prompt's rows are repeated for each text, on equal shares.

    Args:
        texts: (1, T, C) each, beside the prompt's own; token counts may differ.
    """
    clone, count = model.clone(), 1 + len(texts)

    def before(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        numbers = options["cond_or_uncond"]
        latents = len(q) // len(numbers)
        length = math.lcm(k.shape[1], *(text.shape[1] for text in texts))
        queries, keys = [], []
        for number, part, context in zip(numbers, q.chunk(len(numbers)), k.chunk(len(numbers)), strict=True):
            own = context.repeat(1, length // context.shape[1], 1)
            if number == UNCOND_NUMBER:
                queries.append(part)
                keys.append(own)
            else:
                queries.append(part.repeat(count, 1, 1))
                others = [text.to(k).repeat(latents, length // text.shape[1], 1) for text in texts]
                keys.append(torch.cat((own, *others)))
        return torch.cat(queries), torch.cat(keys), torch.cat(keys)

    def behind(out: Tensor, options: dict[str, Any]) -> Tensor:
        numbers = options["cond_or_uncond"]
        blocks = sum(1 if number == UNCOND_NUMBER else count for number in numbers)
        latents, parts, start = len(out) // blocks, [], 0
        for number in numbers:
            times = 1 if number == UNCOND_NUMBER else count
            rows = out[start : start + times * latents]
            parts.append(rows.unflatten(0, (times, latents)).mean(0))
            start += times * latents
        return torch.cat(parts)

    clone.set_model_attn2_patch(before)
    clone.set_model_attn2_output_patch(behind)
    return clone


def regions(model: Any, count: int) -> Any:
    """As krita's regions: rows and `cond_or_uncond` are lengthened together, in place, and shortened behind."""
    clone = model.clone()
    before_change: list[list[int]] = []

    def before(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        numbers = options["cond_or_uncond"]
        before_change.append(list(numbers))
        times = [1 if number == UNCOND_NUMBER else count for number in numbers]
        changed = [
            torch.cat([part.repeat(n, 1, 1) for part, n in zip(x.chunk(len(numbers)), times, strict=True)])
            for x in (q, k, v)
        ]
        numbers[:] = [number for number, n in zip(before_change[-1], times, strict=True) for _ in range(n)]
        return changed[0], changed[1], changed[2]

    def behind(out: Tensor, options: dict[str, Any]) -> Tensor:
        numbers = options["cond_or_uncond"]
        original = before_change.pop()
        parts, start, latents = [], 0, len(out) // len(numbers)
        for number in original:
            n = 1 if number == UNCOND_NUMBER else count
            parts.append(out[start * latents : (start + n) * latents].unflatten(0, (n, latents)).mean(0))
            start += n
        numbers[:] = original
        return torch.cat(parts)

    clone.set_model_attn2_patch(before)
    clone.set_model_attn2_output_patch(behind)
    return clone


def tiles(model: Any, side: int, per_call: int, *, as_views: bool = False) -> Any:
    """As tile wrappers: the latent is cut into squares, of which several whole batches go into one call.

    Args:
        side: of a tile, in cells; divides the latent's sides.
        as_views: one tile a call, handed on as a slice of the latent.
    """

    def wrapper(apply: Callable[..., Tensor], call: dict[str, Any]) -> Tensor:
        x, t, c = call["input"], call["timestep"], call["c"]
        corners = [(y, z) for y in range(0, x.shape[-2], side) for z in range(0, x.shape[-1], side)]
        out = torch.empty_like(x)
        for start in range(0, len(corners), per_call):
            some = corners[start : start + per_call]
            cuts = [x[..., y : y + side, z : z + side] for y, z in some]
            batch = cuts[0] if as_views else torch.cat(cuts)
            given = {
                name: value.repeat(len(some), *[1] * (value.ndim - 1)) if isinstance(value, Tensor) else value
                for name, value in c.items()
            }
            result = apply(batch, t.repeat(len(some)), **given)
            for (y, z), part in zip(some, result.chunk(len(some)), strict=True):
                out[..., y : y + side, z : z + side] = part
        return out

    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    return clone
