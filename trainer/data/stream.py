"""Shards as an endless, shuffled stream of batches of one size, the same every time it is read."""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

from ..batch import Skipped
from .buckets import bucket_sizes, nearest_bucket
from .pictures import Size, upright_size
from .records import DataError, Record
from .sample import Candidate
from .shards import Shards

_LOOKAHEAD = 64  # batches searched for a picture in place of a broken one


@dataclass(frozen=True)
class RawBatch:
    """Records of one bucket before they are decoded, and what was broken among those read for them."""

    bucket: Size
    records: tuple[Record, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Reader:
    """One of several that share the shards: in each epoch every shard is read by exactly one.

    Attributes:
        number, total: which one, of how many.
        batch_size: of its batches.
        shuffle_buffer: samples among which the next one is chosen.
    """

    shards: Shards
    seed: int
    number: int
    total: int
    batch_size: int
    shuffle_buffer: int

    def batches(self, start: int) -> Iterator[tuple[RawBatch, Iterator[Candidate]]]:
        """Batches from number `start` on, each with the candidates that may stand in for its broken pictures.

        What came before `start` is read again without decoding: about as long as copying the shards takes. Stand-ins
        are later records of the stream, which they do not use up, so that what is broken changes no later batch.

        Raises:
            DataError: an epoch without a usable sample.
        """
        batches = islice(self._batches(), start, None)
        ahead: deque[RawBatch] = deque()

        def upcoming(batch: RawBatch) -> Iterator[Candidate]:
            for index in range(_LOOKAHEAD):
                if index == len(ahead):
                    ahead.append(next(batches))
                if ahead[index].bucket == batch.bucket:
                    yield from map(_candidate, ahead[index].records)

        while True:
            batch = ahead.popleft() if ahead else next(batches)
            yield batch, upcoming(batch)

    def _batches(self) -> Iterator[RawBatch]:
        sizes = bucket_sizes(self.shards.data)
        queues: dict[Size, list[Record]] = {size: [] for size in sizes}
        skipped: list[Skipped] = []
        for item in self._samples():
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            bucket = nearest_bucket(upright_size(item.image), sizes)
            queue = queues[bucket]
            queue.append(item)
            if len(queue) == self.batch_size:
                yield RawBatch(bucket, tuple(queue), tuple(skipped))
                queue.clear()
                skipped.clear()

    def _samples(self) -> Iterator[Record | Skipped]:
        import webdataset

        for epoch in count():
            urls = list(self.shards.urls)
            random.Random(f"{self.seed}/{epoch}").shuffle(urls)  # the same in every reader
            mine = urls[self.number :: self.total]
            chooser = random.Random(f"{self.seed}/{epoch}/{self.number}")
            shuffle = webdataset.shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, rng=chooser)
            usable = 0
            for item in shuffle(self.shards.read(mine)):
                usable += isinstance(item, Record)
                yield item
            if not usable:
                raise DataError(
                    f"no picture that can be used in {', '.join(mine)}",
                    expected="pictures with captions in every shard",
                    action="check the shards with tar -tf, and data.image_column",
                )


def _candidate(record: Record) -> Candidate:
    return Candidate(record, record.reference)


def stand_ins(batch: RawBatch, index: int, upcoming: Iterator[Candidate]) -> Iterator[Candidate]:
    """A record of a batch, then those that take its place if it is broken: the upcoming ones."""
    yield _candidate(batch.records[index])
    yield from upcoming
