"""Which record is sample number `position` of a run: from seed, data and global batch size alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..draws import sample_generator
from .pictures import Size


class Order:
    """Every record equally often, of which nothing has to be stored to resume.

    Samples come in groups of one bucket: a global batch (of all processes together) where there are several buckets, so
    that processes times batch size decides the order, not how it is split up; else a single sample. Each bucket is an
    endless row of permutations of its records, cut into groups wherever these end. An epoch has as many groups of each
    bucket as its records fill, the rest being added up until it fills one more, in random order. With one bucket that is
    a plain permutation of the records.

    Args:
        members: numbers of the records in each bucket, none empty.
        global_batch: samples of all processes in one forward.
    """

    def __init__(self, seed: int, members: Mapping[Size, Sequence[int]], global_batch: int) -> None:
        self._seed = seed
        self._members = {bucket: torch.as_tensor(numbers) for bucket, numbers in sorted(members.items())}
        self._buckets = list(self._members)
        self._sizes = [len(numbers) for numbers in self._members.values()]
        self._unit = global_batch if len(members) > 1 else 1
        # what a bucket has saved up before the first epoch: by chance, or short runs would never see the rare sizes
        self._saved = [
            int(torch.randint(self._unit, (), generator=sample_generator(seed, 0, f"bucket/{bucket}")))
            for bucket in self._buckets
        ]
        self._epoch = -1
        self._start = 0
        self._arranged = torch.empty(0)
        self._rounds: dict[int, tuple[int, Tensor]] = {}

    def at(self, position: int) -> tuple[int, Size]:
        """Number of the record, and its bucket."""
        group, offset = divmod(position, self._unit)
        if not (self._epoch >= 0 and self._start <= group < self._start + len(self._arranged)):
            self._epoch = self._epoch_of(group)
            self._start = sum(self._groups_before(self._epoch))
            self._arranged = self._arrange(self._epoch)
        bucket, number = (int(value) for value in self._arranged[group - self._start])
        return self._record(bucket, number * self._unit + offset), self._buckets[bucket]

    def replacement(self, position: int, bucket: Size, attempt: int) -> int:
        """Number of the record of the same bucket that is tried when that at a position is broken."""
        generator = sample_generator(self._seed, position, f"replacement/{attempt}")
        members = self._members[bucket]
        return int(members[int(torch.randint(len(members), (), generator=generator))])

    def _groups_before(self, epoch: int) -> list[int]:
        """How many of each bucket came in all epochs before one."""
        return [(epoch * size + saved) // self._unit for size, saved in zip(self._sizes, self._saved, strict=True)]

    def _epoch_of(self, group: int) -> int:
        first, beyond = 0, (group + len(self._sizes)) * self._unit // sum(self._sizes) + 2
        while beyond - first > 1:
            middle = (first + beyond) // 2
            if sum(self._groups_before(middle)) <= group:
                first = middle
            else:
                beyond = middle
        return first

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
        turn, offset = divmod(place, self._sizes[bucket])
        known, permutation = self._rounds.get(bucket, (-1, torch.empty(0)))
        if known != turn:
            name = f"order/{self._buckets[bucket]}"
            permutation = torch.randperm(self._sizes[bucket], generator=sample_generator(self._seed, turn, name))
            self._rounds[bucket] = turn, permutation
        return int(self._members[self._buckets[bucket]][permutation[offset]])
