"""Two halves that have nothing to do with each other: taught by pairs of pictures that differ in one half.

A sample at a time does not teach it. What stands in the other half, and whether an image prompt or nothing tells of it,
is then one guess among many; yet a masked adapter that leaks is nothing else. Of the same half, from the same noise, a
base model should say the same, whatever is beside it and however that is told.
"""

# B pairs; S, S latent cells

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SHOWN = 0.7  # of the first of a pair; of the second no image prompt tells


@dataclass(frozen=True)
class Pairs:
    """2B samples, the pairs' first ones before their second ones.

    Attributes:
        x: latents (2B, 4, S, S), equal within a pair where `shared`.
        t: timesteps (2B,), equal within a pair.
        noise: (2B, 4, S, S), equal within a pair.
        words: image prompts (2B, W, 768), of the halves that differ.
        shown: (2B, S, S), where the image prompt holds: nowhere, or on the half that differs.
        shared: (S, S), the half that is the same.
    """

    x: Tensor
    t: Tensor
    noise: Tensor
    words: Tensor
    shown: Tensor
    shared: Tensor


def draw_pairs(
    latents: Tensor, count: int, timesteps: int, words_of: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Pairs:
    """So many pairs, at timesteps below `timesteps`.

    Args:
        latents: (N, 4, S, S), of the pictures.
        words_of: latents (B, 4, S, S) to the image prompts of them (B, W, 768).
    """

    def some() -> Tensor:
        return latents[torch.randint(len(latents), (count,), generator=generator)]

    own, beside = [some(), some()], some()
    width = latents.shape[-1]
    left = torch.arange(width) < width // 2
    differs = (left if torch.rand((), generator=generator) < 0.5 else ~left).expand(width, width)
    shown = (torch.rand(count, generator=generator) < SHOWN)[:, None, None] & differs
    t = torch.randint(timesteps, (count,), generator=generator)
    noise = torch.randn(beside.shape, generator=generator)
    return Pairs(
        x=torch.cat([torch.where(differs, half, beside) for half in own]),
        t=t.repeat(2),
        noise=noise.repeat(2, 1, 1, 1),
        words=torch.cat([words_of(half) for half in own]),
        shown=torch.cat((shown, torch.zeros_like(shown))),
        shared=~differs,
    )


def difference(predicted: Tensor, pairs: Pairs, weights: Tensor) -> Tensor:
    """How much the predictions of a pair differ where its pictures do not: mean square over the shared half.

    Args:
        predicted: noise (2B, 4, S, S).
        weights: (2B, 1, 1, 1), as the loss of the predictions themselves has them.
    """
    first, second = (predicted * weights.sqrt()).chunk(2)
    return (first - second).square()[..., pairs.shared].mean()
