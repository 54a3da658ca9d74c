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

_NOISE_SEED = 0
Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Mix:
    """How references are combined whose tokens are made later: what each combined one takes of which reference.

    Attributes:
        cond: R' rows of R numbers.
        uncond: U' rows of U numbers.
    """

    cond: Rows
    uncond: Rows


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """Tokens of the cond and of the uncond side.

    Attributes:
        cond: (R, N, C), one row per reference.
        uncond: (R', N, C); R' is 1 when all references share one negative, R or another number of negatives.
        adapter_id: the adapter that made them; only that adapter's K/V projections understand them.
        mix: where the sides hold image features, of which tokens are made at every step; None where they hold tokens.
        digest: hash of the content, made here; equal digests mean equal tokens.
    """

    cond: Tensor
    uncond: Tensor
    adapter_id: str
    mix: Mix | None = None
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        if not (self.cond.isfinite().all() and self.uncond.isfinite().all()):
            raise BadInputError(
                "image tokens with NaN or infinite values",
                expected="finite numbers",
                action="the adapter or encoder file is damaged: download it again",
            )
        digest = hashlib.blake2b(self.adapter_id.encode(), digest_size=16)
        if self.mix is not None:
            digest.update(repr(self.mix).encode())
        for tensor in (self.cond, self.uncond):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        object.__setattr__(self, "digest", digest.hexdigest())

    @property
    def num_references(self) -> int:
        return len(self.cond if self.mix is None else self.mix.cond)

    @property
    def num_bytes(self) -> int:
        return self.cond.nbytes + self.uncond.nbytes

    @property
    def mixes(self) -> Mix:
        """What each combined reference takes of which: every one itself, if nothing else was said."""
        return self.mix or _each_itself(self.cond, self.uncond)

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


def features_as_tokens(cond: Tensor, uncond: Tensor, adapter_id: str) -> ImageTokens:
    """Image features of which tokens are made at every step: (R, S, E) and (R', S, E) as `ImageTokens`' sides."""
    return ImageTokens(cond, uncond, adapter_id, _each_itself(cond, uncond))


def _each_itself(cond: Tensor, uncond: Tensor) -> Mix:
    return Mix(*(tuple(_all_of(row, len(side)) for row in range(len(side))) for side in (cond, uncond)))


def _all_of(number: int, count: int) -> tuple[float, ...]:
    return tuple(float(number == other) for other in range(count))


def only_reference(tokens: ImageTokens, number: int) -> ImageTokens:
    """One of several references, with the negative that belongs to it."""
    if tokens.mix is None:
        cond, uncond = (side[[min(number, len(side) - 1)]] for side in (tokens.cond, tokens.uncond))
        return replace(tokens, cond=cond, uncond=uncond)
    mix = ((side[min(number, len(side) - 1)],) for side in (tokens.mix.cond, tokens.mix.uncond))
    return replace(tokens, mix=Mix(*mix))


def with_noise(tokens: ImageTokens, amount: float) -> ImageTokens:
    """Tokens whose uncond side has noise on it, always the same, in units of the cond side's spread; 0 is none."""
    if amount == 0:
        return tokens
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    noise = torch.randn(tokens.uncond.shape, generator=generator).to(tokens.uncond)
    return replace(tokens, uncond=tokens.uncond + amount * tokens.cond.std() * noise)


def in_one_row(tokens: ImageTokens) -> ImageTokens:
    """All references as one."""
    uncond, cond = tokens.sequences()
    return replace(tokens, cond=cond[None], uncond=uncond[None])


def weighed(tokens: ImageTokens, factors: Sequence[float]) -> ImageTokens:
    """Tokens whose cond side is multiplied by a factor: each row by its own, the last one serving all further rows.

    With more factors than rows, the last row is repeated. A factor of 0 leaves nothing of the uncond side either.
    """
    if set(factors) == {1}:
        return tokens
    rows = range(max(len(tokens.cond), len(factors)))
    scale = tokens.cond.new_tensor([factors[min(row, len(factors) - 1)] for row in rows])
    cond = tokens.cond[[min(row, len(tokens.cond) - 1) for row in rows]]
    uncond = tokens.uncond
    if 0 in factors:
        uncond = uncond[[min(row, len(uncond) - 1) for row in rows]] * (scale != 0)[:, None, None]
    return replace(tokens, cond=cond * scale[:, None, None], uncond=uncond)


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
        is_linear: whether a sum of tokens with fixed factors comes out, so that the factors may be known before the tokens.
    """

    reduce: Callable[[Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor] = _unchanged
    is_linear: bool = False


COMBINATIONS: dict[str, Combination] = {
    "concat": Combination(_unchanged, is_linear=True),
    "average": Combination(_mean, is_linear=True),
    # so that no reference counts more for having longer tokens
    "norm average": Combination(_mean, prepare=_at_common_length),
    "add": Combination(lambda x: x.sum(dim=0, keepdim=True), is_linear=True),
    "subtract": Combination(_subtract, is_linear=True),
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

    Features of which tokens are made at every step are kept as they are, and what is to be done with their tokens is
    noted in `ImageTokens.mix`.

    Raises:
        MismatchError: parts of different adapters, or of different token counts where they are added elementwise.
        BadInputError: an unknown method, one that needs the tokens before there are any, or not one factor per part.
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
    mixes = [part.mix for part in parts if part.mix is not None]
    sides = [(part.cond, part.uncond) for part in parts]
    if not mixes:
        return ImageTokens(*_combined(sides, combination, factors), parts[0].adapter_id)
    if not combination.is_linear:
        raise BadInputError(
            f"method '{method}' for an adapter that makes other tokens at every step",
            expected=f"one of {', '.join(name for name, one in COMBINATIONS.items() if one.is_linear)}",
            action="choose another method",
        )
    rows = zip(_apart([mix.cond for mix in mixes]), _apart([mix.uncond for mix in mixes]), strict=True)
    cond, uncond = (torch.cat(side) for side in zip(*sides, strict=True))
    mix = Mix(*(tuple(map(tuple, side.tolist())) for side in _combined(list(rows), combination, factors)))
    return ImageTokens(cond, uncond, parts[0].adapter_id, mix)


def _apart(mixes: Sequence[Rows]) -> tuple[Tensor, ...]:
    """The rows of each, (R', all R), float64."""
    parts = (torch.tensor(mix, dtype=torch.float64) for mix in mixes)
    diagonal: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
    return torch.split(diagonal, [len(mix) for mix in mixes])


def _combined(
    sides: Sequence[tuple[Tensor, Tensor]], combination: Combination, factors: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """One cond and one uncond side of several; see `combine`."""
    counts = torch.tensor([len(cond) for cond, _ in sides])
    cond = combination.prepare(torch.cat([cond for cond, _ in sides]))
    scale = torch.tensor(factors, dtype=cond.dtype).repeat_interleave(counts).to(cond.device)
    cond = cond * scale.reshape(-1, *[1] * (cond.ndim - 1))
    if combination.reduce is _unchanged:
        each = [none.expand(len(one), *none.shape[1:]) if len(none) == 1 else none for one, none in sides]
        return cond, torch.cat(each)
    return combination.reduce(cond), _mean(torch.cat([uncond for _, uncond in sides]))
