"""Which record is sample number `position` of a run: from seed, data and global batch size alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ..draws import sample_generator
from .pictures import Size

_FINEST = 10**6  # of repeats and weights, which then are exact


@dataclass(frozen=True)
class Portion:
    """A data set of several.

    Attributes:
        numbers: of its records.
        repeats: how often each comes in an epoch.
        weight: in place of repeats, its share of the samples as a proportion of the weights of all.
    """

    numbers: Sequence[int]
    repeats: float = 1.0
    weight: float | None = None


class Order:
    """Every record as often as its data set says, of which nothing has to be stored to resume.

    Samples come in groups of one bucket: a global batch (of all processes together) where there are several buckets, so
    that processes times batch size decides the order, not how it is split up; else a single sample. Each bucket is an
    endless row of rounds, permutations of its records, cut into groups wherever these end. An epoch has as many groups
    of each bucket as a round fills, the rest being added up until it fills one more, in random order. With one bucket
    and one data set that is a plain permutation of the records.

    Args:
        members: numbers of the records in each bucket, none empty.
        global_batch: samples of all processes in one forward.
        portions: the data sets that the records are of; one if not given.
    """

    def __init__(
        self,
        seed: int,
        members: Mapping[Size, Sequence[int]],
        global_batch: int,
        portions: Sequence[Portion] = (),
    ) -> None:
        self._seed = seed
        self._members = {bucket: torch.as_tensor(numbers) for bucket, numbers in sorted(members.items())}
        self._buckets = list(self._members)
        self._rows = _rows(self._members, portions)
        self._unit = global_batch if len(members) > 1 else 1
        # what a bucket has saved up before the first epoch: by chance, or short runs would never see the rare sizes
        self._saved = [
            int(torch.randint(self._unit, (), generator=sample_generator(seed, 0, f"bucket/{bucket}")))
            for bucket in self._buckets
        ]
        self._start = 0
        self._arranged = torch.empty(0)
        self._rounds: dict[int, tuple[int, Tensor]] = {}

    def at(self, position: int) -> tuple[int, Size]:
        """Number of the record, and its bucket."""
        group, offset = divmod(position, self._unit)
        if not self._start <= group < self._start + len(self._arranged):
            epoch = _last_before(lambda epoch: sum(self._groups_before(epoch)), group)
            self._start = sum(self._groups_before(epoch))
            self._arranged = self._arrange(epoch)
        bucket, number = (int(value) for value in self._arranged[group - self._start])
        return self._record(bucket, number * self._unit + offset), self._buckets[bucket]

    def replacement(self, position: int, bucket: Size, attempt: int) -> int:
        """Number of the record of the same bucket that is tried when that at a position is broken."""
        generator = sample_generator(self._seed, position, f"replacement/{attempt}")
        members = self._members[bucket]
        return int(members[int(torch.randint(len(members), (), generator=generator))])

    def _groups_before(self, epoch: int) -> list[int]:
        """How many of each bucket came in all epochs before one."""
        return [(row.before(epoch) + saved) // self._unit for row, saved in zip(self._rows, self._saved, strict=True)]

    def _arrange(self, epoch: int) -> Tensor:
        """(groups, 2) of an epoch: the bucket's number, and that of the group among all of its bucket."""
        before, after = self._groups_before(epoch), self._groups_before(epoch + 1)
        groups = [
            torch.stack((torch.full((last - first,), bucket), torch.arange(first, last)), dim=1)
            for bucket, (first, last) in enumerate(zip(before, after, strict=True))
        ]
        all_groups = torch.cat(groups)
        return all_groups[torch.randperm(len(all_groups), generator=sample_generator(self._seed, epoch, "order"))]

    def _record(self, bucket: int, place: int) -> int:
        """The record at a place of a bucket's endless row."""
        row = self._rows[bucket]
        first, numbers = self._rounds.get(bucket, (0, torch.empty(0)))
        if not first <= place < first + len(numbers):
            turn = _last_before(row.before, place)
            generator = sample_generator(self._seed, turn, f"order/{self._buckets[bucket]}")
            first, numbers = row.before(turn), row.round(turn)
            numbers = numbers[torch.randperm(len(numbers), generator=generator)]
            self._rounds[bucket] = first, numbers
        return int(numbers[place - first])


@dataclass(frozen=True, eq=False)
class _Row:
    """One bucket's records by data set, and how often those come in a round."""

    parts: Sequence[tuple[Tensor, Fraction]]

    def before(self, number: int) -> int:
        """Samples in all rounds before one."""
        return sum(int(len(numbers) * number * often) for numbers, often in self.parts)

    def round(self, number: int) -> Tensor:
        """The records of a round, some of them several times or not; their times differ by one at most."""
        return torch.cat([numbers[_chosen(len(numbers), number, often)] for numbers, often in self.parts])


def _chosen(count: int, number: int, often: Fraction) -> Tensor:
    """Those of a data set that come in a round: a stretch of all records behind one another, again and again."""
    first, last = int(count * number * often), int(count * (number + 1) * often)
    return torch.arange(first, last) % max(count, 1)


def _rows(members: Mapping[Size, Tensor], portions: Sequence[Portion]) -> list[_Row]:
    if len(portions) < 2:
        return [_Row([(numbers, Fraction(1))]) for numbers in members.values()]
    sets = [torch.as_tensor(portion.numbers) for portion in portions]
    parts = [[numbers[torch.isin(numbers, of_set)] for of_set in sets] for numbers in members.values()]
    often = times_in_epoch(
        portions, [sum(len(of_bucket[number]) for of_bucket in parts) for number in range(len(sets))]
    )
    return [_Row(list(zip(of_bucket, often, strict=True))) for of_bucket in parts]


def times_in_epoch(portions: Sequence[Portion], counts: Sequence[int]) -> list[Fraction]:
    """How often a record of each data set comes in an epoch, by how many records each has."""
    if len(portions) < 2:
        return [Fraction(1)] * len(portions)
    return [_often(number, portions, counts) for number in range(len(portions))]


def _often(number: int, portions: Sequence[Portion], counts: Sequence[int]) -> Fraction:
    weights = [
        Fraction(portion.weight or 0).limit_denominator(_FINEST) if count else Fraction(0)
        for portion, count in zip(portions, counts, strict=True)
    ]
    if not any(weights) or not counts[number]:
        return Fraction(portions[number].repeats).limit_denominator(_FINEST)
    return weights[number] / sum(weights) * sum(counts) / counts[number]


def _last_before(count: Callable[[int], int], place: int) -> int:
    """The last number whose count, which rises with it, is not beyond a place."""
    first, beyond = 0, 1
    while count(beyond) <= place:
        first, beyond = beyond, 2 * beyond
    while beyond - first > 1:
        middle = (first + beyond) // 2
        first, beyond = (middle, beyond) if count(middle) <= place else (first, middle)
    return first
