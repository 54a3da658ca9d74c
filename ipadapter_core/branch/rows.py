"""Which side, latent and place every row of a batch is: known from who made the batch, or refused.

A sampler runs its conditionings side by side: for each one a block of rows, one row per latent. Other packs change that
batch: tile wrappers put several whole batches behind each other, attention couples repeat a prompt's rows inside the
model. What fits none of these patterns is refused, as a guess would give the image to the wrong rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import MismatchError

COND, UNCOND = 0, 1
_UNCOND_NUMBER = 1  # by which attention couples tell the negative prompt in ComfyUI's `cond_or_uncond`


@dataclass(frozen=True)
class Place:
    """A rectangle of the whole latent, in cells.

    Attributes:
        top, left, height, width: of the rectangle.
        whole: height and width of the latent.
    """

    top: int
    left: int
    height: int
    width: int
    whole: tuple[int, int]


@dataclass(frozen=True)
class Group:
    """One conditioning of a batch.

    Attributes:
        number: its entry in ComfyUI's `cond_or_uncond`.
        side: COND or UNCOND.
        place: the part of the latent it is about; None is all of it.
    """

    number: int
    side: int
    place: Place | None = None


@dataclass(frozen=True)
class Rows:
    """A batch as blocks of rows, each with one row per latent.

    Attributes:
        blocks: whose rows they are, in batch order.
        latents: rows of every block.
    """

    blocks: tuple[Group, ...]
    latents: int

    @property
    def count(self) -> int:
        return len(self.blocks) * self.latents

    @property
    def sides(self) -> tuple[int, ...]:
        return tuple(block.side for block in self.blocks)

    @property
    def places(self) -> tuple[Place | None, ...]:
        return tuple(block.place for block in self.blocks)


def batch_rows(count: int, groups: Sequence[Group], latents: int | None) -> Rows:
    """The rows of a batch that a model is called with: the sampler's own, or several of them behind each other (tiles).

    Args:
        count: rows of the batch.
        groups: the sampler's conditionings in batch order.
        latents: how many are sampled; None where no sampler said it.

    Raises:
        MismatchError: rows that fit neither.
    """
    if latents is None and count % len(groups) == 0:
        latents = count // len(groups)
    if latents and count and count % (len(groups) * latents) == 0:
        return Rows(tuple(groups) * (count // (len(groups) * latents)), latents)
    if alike := _of_one_kind(count, groups, latents):
        return alike
    raise _unknown(count, groups, latents, "the model is called with")


def attention_rows(count: int, batch: Rows, groups: Sequence[Group]) -> Rows:
    """The rows inside a model that was called with `batch`.

    Args:
        count: rows of the attention's queries.
        groups: the conditionings as they are now: a pack may have lengthened the list along with the rows.

    Raises:
        MismatchError: rows that fit no pattern.
    """
    if count == batch.count:
        return batch
    if count == len(groups) * batch.latents:
        return Rows(tuple(groups), batch.latents)
    blocks, rest = divmod(count, batch.latents)
    if rest == 0:
        # of tiles a couple repeats other rows than it means to
        tests = (_has_uncond_number, _is_uncond) if len(batch.blocks) == len(groups) else ()
        for is_single in tests:
            if coupled := _coupled(blocks, batch.blocks, [is_single(block) for block in batch.blocks]):
                return Rows(coupled, batch.latents)
        if blocks % len(batch.blocks) == 0:
            return Rows(batch.blocks * (blocks // len(batch.blocks)), batch.latents)
    if alike := _of_one_kind(count, batch.blocks, batch.latents):
        return alike
    raise _unknown(count, batch.blocks, batch.latents, "an attention layer is called with")


def _has_uncond_number(block: Group) -> bool:
    return block.number == _UNCOND_NUMBER


def _is_uncond(block: Group) -> bool:
    return block.side == UNCOND


def _coupled(count: int, blocks: Sequence[Group], single: Sequence[bool]) -> tuple[Group, ...] | None:
    """Blocks in which each but the single ones is repeated on the spot; None if so many blocks cannot come of it."""
    repeated = len(single) - sum(single)
    if not repeated or count <= len(blocks) or (count - sum(single)) % repeated:
        return None
    times = (count - sum(single)) // repeated
    return tuple(block for block, once in zip(blocks, single, strict=True) for _ in range(1 if once else times))


def _of_one_kind(count: int, groups: Sequence[Group], latents: int | None) -> Rows | None:
    """Rows that are all of one side and place are what they are, however many there are."""
    kinds = {(group.side, group.place) for group in groups}
    if len(kinds) > 1 or not count:
        return None
    size = latents if latents and count % latents == 0 else count
    return Rows((groups[0],) * (count // size), size)


def _unknown(count: int, groups: Sequence[Group], latents: int | None, where: str) -> MismatchError:
    sides = ", ".join("positive" if group.side == COND else "negative" for group in groups)
    return MismatchError(
        f"{where} {count} rows, for conditionings ({sides}) of {latents or 'an unknown number of'} latents each",
        expected="each conditioning's rows once, whole batches behind each other (tiles), or the positive's rows "
        "repeated (attention couple)",
        action="remove the node that changes the batch (tiles, couple or regions of another pack), or the IP-Adapter",
    )
