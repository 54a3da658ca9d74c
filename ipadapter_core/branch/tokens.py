"""`ImageTokens`: what the attention reads of one or more references, and how several are combined."""

# R references, N tokens per reference, T tokens in all, C cross-attention dim

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BadInputError, MismatchError, one_of


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """Tokens of the cond and of the uncond side.

    Attributes:
        cond: (R, N, C), one row per reference.
        uncond: (R', N, C); R' is 1 when all references share one negative, R or another number of negatives.
        adapter_id: the adapter that made them; only that adapter's K/V projections understand them.
        digest: hash of the content, made here; equal digests mean equal tokens.
    """

    cond: Tensor
    uncond: Tensor
    adapter_id: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if not (self.cond.isfinite().all() and self.uncond.isfinite().all()):
            raise BadInputError(
                "image tokens with NaN or infinite values",
                expected="finite numbers",
                action="the adapter or encoder file is damaged: download it again",
            )
        digest = hashlib.blake2b(self.adapter_id.encode(), digest_size=16)
        for tensor in (self.cond, self.uncond):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        object.__setattr__(self, "digest", digest.hexdigest())

    @property
    def num_bytes(self) -> int:
        return self.cond.nbytes + self.uncond.nbytes

    def sequences(self) -> tuple[Tensor, Tensor]:
        """(uncond, cond) as two sequences (T, C) of one length.

        References are laid one behind the other. A shorter side is repeated: softmax attention over k copies of the
        same keys equals attention over one copy, so this changes no result.
        """
        cond, uncond = (side.flatten(0, 1) for side in (self.cond, self.uncond))
        length = math.lcm(len(cond), len(uncond))
        return uncond.repeat(length // len(uncond), 1), cond.repeat(length // len(cond), 1)

    def frames(self) -> tuple[Tensor, Tensor]:
        """(uncond, cond) with one row per reference, (R, N, C) each; too few negatives have their last repeated."""
        picked = torch.arange(len(self.cond)).clamp_max(len(self.uncond) - 1)
        return self.uncond[picked], self.cond


def in_one_row(tokens: ImageTokens) -> ImageTokens:
    """All references as one."""
    uncond, cond = tokens.sequences()
    return replace(tokens, cond=cond[None], uncond=uncond[None])


def weighed(tokens: ImageTokens, factors: Sequence[float]) -> ImageTokens:
    """Tokens whose cond side is multiplied by a factor: each row by its own, the last one serving all further rows.

    With more factors than rows, the last row is repeated.
    """
    if set(factors) == {1}:
        return tokens
    rows = range(max(len(tokens.cond), len(factors)))
    scale = torch.tensor([factors[min(row, len(factors) - 1)] for row in rows]).to(tokens.cond)
    cond = tokens.cond[[min(row, len(tokens.cond) - 1) for row in rows]]
    return replace(tokens, cond=cond * scale[:, None, None])


def _one_per_reference(part: ImageTokens) -> Tensor:
    return part.uncond.expand(len(part.cond), -1, -1) if len(part.uncond) == 1 else part.uncond


def _at_common_length(x: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return functional.normalize(x, dim=-1) * lengths.mean(dim=0, keepdim=True)


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=0, keepdim=True)


def _subtract(x: Tensor) -> Tensor:
    return x[:1] - _mean(x[1:]) if len(x) > 1 else x


def _unchanged(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Combination:
    """How the cond tokens (R, N, C) of several references become one.

    Attributes:
        reduce: to (1, N, C); or unchanged, which keeps every reference.
        prepare: applied before the factors.
    """

    reduce: Callable[[Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor] = _unchanged


COMBINATIONS: dict[str, Combination] = {
    "concat": Combination(_unchanged),
    "average": Combination(_mean),
    # so that no reference counts more for having longer tokens
    "norm average": Combination(_mean, prepare=_at_common_length),
    "add": Combination(lambda x: x.sum(dim=0, keepdim=True)),
    "subtract": Combination(_subtract),
    "max": Combination(lambda x: x.amax(dim=0, keepdim=True)),
    "min": Combination(lambda x: x.amin(dim=0, keepdim=True)),
}


def combine(parts: Sequence[ImageTokens], method: str, factors: Sequence[float]) -> ImageTokens:
    """Combine the references of several `ImageTokens` into one.

    Args:
        parts: at least one; all made by the same adapter.
        method: a key of `COMBINATIONS`. The cond side is combined; of the uncond sides, concat keeps all (one per
            reference) and every other method takes the mean.
        factors: one per part, 1.0 is neutral; multiplies that part's cond tokens.

    Raises:
        MismatchError: parts of different adapters, or of different token counts where they are added elementwise.
        BadInputError: an unknown method, or not one factor per part.
    """
    combination = one_of(method, COMBINATIONS, "combination method")
    if len(factors) != len(parts):
        raise BadInputError(
            f"{len(factors)} weights for {len(parts)} tokens",
            expected="one weight per connected tokens input, or none at all",
            action="list as many numbers as there are inputs",
        )
    if len({part.adapter_id for part in parts}) > 1:
        raise MismatchError(
            "tokens made by different adapters",
            expected="tokens that one and the same adapter made",
            action="encode every reference with the adapter they are applied with",
        )
    if len({part.cond.shape[1] for part in parts}) > 1:
        raise MismatchError(
            "tokens of different lengths",
            expected="references encoded by one encoder at one size",
            action="encode every reference with the same image encoder",
        )
    cond = combination.prepare(torch.cat([part.cond for part in parts]))
    counts = torch.tensor([len(part.cond) for part in parts])
    cond = cond * torch.tensor(factors, dtype=cond.dtype).repeat_interleave(counts)[:, None, None].to(cond.device)
    if method == "concat":
        uncond = torch.cat([_one_per_reference(part) for part in parts])
    else:
        uncond = _mean(torch.cat([part.uncond for part in parts]))
    return ImageTokens(combination.reduce(cond), uncond, parts[0].adapter_id)
