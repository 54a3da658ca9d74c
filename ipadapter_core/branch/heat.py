"""Where in the picture each reference acts: how much of what the image branch adds to a token is due to which reference."""

# R references, P parts: the references, and the picture's own keys where the attention runs over them too; B latents,
# L tokens of a feature map h x w, C channels, S steps, H W cells of the latent

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BadInputError

_ROUNDING = 1e-4  # of noise levels


@dataclass(frozen=True)
class References:
    """Whose the image tokens of a site are: those of one reference, then of the next, all of it once or several times.

    Attributes:
        first: number of the first of them among those of the plan.
        count: how many there are.
        tokens: of each; None is an equal part of all.
    """

    first: int = 0
    count: int = 1
    tokens: int | None = None

    def columns(self, length: int) -> Tensor:
        """(count, length): 1 where an image token is of a reference."""
        owner = torch.arange(length) // (self.tokens or length // self.count) % self.count
        return (owner == torch.arange(self.count)[:, None]).float()


def shares(image: Tensor, parts: Sequence[Tensor], weight: Tensor | None = None, held: Tensor | None = None) -> Tensor:
    """How long what is added to each token is, as the sum of what its parts have in it: (P, B, L).

    A part counts as it points in the direction of the whole, so that what is against it is negative.

    Args:
        image: (B, L, C).
        parts: of which `image` is the sum, all but the last one.
        weight: by which the image is multiplied before it is added, of a shape that it can be; None is 1.
        held: what was added in the end, as `image`, where a guard changed it, which knows no parts; None is the product.
    """
    added = image.float() if weight is None else image.float() * weight
    length = _lengths(added)
    if not parts:
        return length[None] if held is None else _lengths(held)[None]
    direction = added / length.clamp_min(torch.finfo(length.dtype).tiny)[..., None]
    direction = direction if weight is None else direction * weight
    known = [(part.float() * direction).sum(dim=-1) for part in parts]
    found = torch.stack([*known, length - sum(known)])
    if held is None:
        return found
    return found * torch.where(length > 0, _lengths(held) / length, 0)


def _lengths(x: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(x.float(), dim=-1)
    return lengths


def step_of_level(level: float, levels: Sequence[float]) -> int:
    """Which step a call of the model belongs to: the one that begins at its noise level, or ends below it.

    Args:
        levels: at which the steps begin, and the last one ends; they fall, or rise.
    """
    rises = levels[0] < levels[-1]
    begun = [each <= level * (1 + _ROUNDING) if rises else each >= level * (1 - _ROUNDING) for each in levels[1:]]
    return min(sum(begun), max(len(levels) - 2, 0))


def on_latent(sums: Tensor, grid: tuple[int, int], covers: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Numbers of the tokens of a feature map (P, B, L) at each cell of a part of the latent, (P, B, *size).

    Args:
        grid: height and width of the feature map.
        covers: cells of the latent it is for; more than `size` where the latent was padded at its end.
    """
    maps = functional.interpolate(sums.view(*sums.shape[:2], *grid), size=covers, mode="bilinear")
    return maps[..., : size[0], : size[1]]


@dataclass(frozen=True, eq=False)
class HeatMaps:
    """What a sampling's adapters added, and where.

    Attributes:
        maps: of each adapter, in the order they were applied, (S, P, B, H, W): the sum over its sites.
        references: how many of the parts of each are references; what is left is the picture's own.
    """

    maps: tuple[Tensor, ...]
    references: tuple[int, ...]

    @property
    def steps(self) -> int:
        return max((len(each) for each in self.maps), default=0)

    def pick(self, adapter: int = 0, reference: int = 0, step: int = 0) -> Tensor:
        """One map for each latent, (B, H, W), nowhere below 0. The numbers count from 1; 0 is all of them together.

        Raises:
            BadInputError: there is none of this number.
        """
        _check("adapter", adapter, len(self.maps))
        chosen = range(len(self.maps)) if adapter == 0 else (adapter - 1,)
        _check("reference", reference, max((self.references[number] for number in chosen), default=0))
        _check("step", step, self.steps)
        total = None
        for number in chosen:
            maps = self.maps[number]
            maps = maps.sum(dim=0) if step == 0 else maps[step - 1]
            parts = maps[: self.references[number]]
            picked = parts.sum(dim=0) if reference == 0 else parts[reference - 1 : reference].sum(dim=0)
            total = picked if total is None else total + picked
        return torch.zeros(1, 1, 1) if total is None else total.clamp_min(0)


def _check(what: str, number: int, count: int) -> None:
    if number > count:
        raise BadInputError(
            f"{what} {number} of a sampling with {count or 'none'}",
            expected=f"a number from 0, which is all, to {count}",
            action=f"set {what} to one of these",
        )
