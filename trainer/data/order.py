"""Which record is sample number `position` of a run: from seed, data and global batch size alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..draws import sample_generator
from .pictures import Size


class Order:
    """A permutation of the records for every epoch, of which nothing has to be stored to resume.

    With several buckets an epoch is made of global batches (those of all processes together) of one bucket each, in
    random order; a bucket's last one is filled up with records of the bucket. So processes times batch size decides
    the order, not how it is split up. With one bucket an epoch is a plain permutation.

    Args:
        members: numbers of the records in each bucket, none empty.
        global_batch: samples of all processes in one forward.
    """

    def __init__(self, seed: int, members: Mapping[Size, Sequence[int]], global_batch: int) -> None:
        self._seed = seed
        self._members = {bucket: torch.as_tensor(numbers) for bucket, numbers in sorted(members.items())}
        self._unit = global_batch if len(members) > 1 else 1
        self._groups = [-(-len(numbers) // self._unit) for numbers in self._members.values()]
        self._buckets = list(self._members)
        self._epoch = -1
        self._numbers = self._bucket_numbers = torch.empty(0)

    @property
    def epoch_length(self) -> int:
        """Samples of an epoch, those that fill up batches included."""
        return sum(self._groups) * self._unit

    def at(self, position: int) -> tuple[int, Size]:
        """Number of the record, and its bucket."""
        epoch, place = divmod(position, self.epoch_length)
        if epoch != self._epoch:
            self._numbers, self._bucket_numbers = self._arrange(epoch)
            self._epoch = epoch
        group, offset = divmod(place, self._unit)
        return int(self._numbers[group, offset]), self._buckets[int(self._bucket_numbers[group])]

    def replacement(self, position: int, bucket: Size, attempt: int) -> int:
        """Number of the record of the same bucket that is tried when that at a position is broken."""
        generator = sample_generator(self._seed, position, f"replacement/{attempt}")
        members = self._members[bucket]
        return int(members[int(torch.randint(len(members), (), generator=generator))])

    def _arrange(self, epoch: int) -> tuple[Tensor, Tensor]:
        """(groups, unit) record numbers and (groups,) bucket numbers of an epoch."""
        parts = []
        for (bucket, numbers), groups in zip(self._members.items(), self._groups, strict=True):
            order = torch.randperm(len(numbers), generator=sample_generator(self._seed, epoch, f"order/{bucket}"))
            filled = order.repeat(-(-groups * self._unit // len(numbers)))[: groups * self._unit]
            parts.append(numbers[filled].view(groups, self._unit))
        buckets = torch.repeat_interleave(torch.tensor(self._groups))
        shuffle = torch.randperm(len(buckets), generator=sample_generator(self._seed, epoch, "order"))
        return torch.cat(parts)[shuffle], buckets[shuffle]
