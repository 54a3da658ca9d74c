"""Shards as an endless, shuffled stream of batches of one size, the same every time it is read."""

import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, count, cycle, islice

from ..batch import Skipped
from .buckets import bucket_sizes, nearest_bucket
from .pictures import Size, upright_size
from .records import DataError, Record
from .sample import Candidate
from .shard_counts import ShardCounts
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

    An epoch is complete in itself: its last batch of each size is filled up with records it has read.

    Attributes:
        number, total: which one, of how many.
        batch_size: of its batches.
        shuffle_buffer: samples among which the next one is chosen.
    """

    shards: Shards
    counts: ShardCounts
    seed: int
    number: int
    total: int
    batch_size: int
    shuffle_buffer: int

    def batches(self, start: int) -> Iterator[tuple[RawBatch, Iterator[Candidate]]]:
        """Batches from number `start` on, each with the candidates that may stand in for its broken pictures.

        Epochs before it are counted off; what of its own epoch came before is read again without decoding, so half an
        epoch on average, as fast as shards can be read. Stand-ins are later records of the stream, which they do not
        use up, so that what is broken changes no later batch.

        Raises:
            DataError: an epoch without a usable sample.
        """
        batches = self._from(start)
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

    def _from(self, start: int) -> Iterator[RawBatch]:
        self.counts.load()
        epoch = 0
        while (size := self.counts.batches(self._urls(epoch), self.batch_size)) and size <= start:
            start -= size
            epoch += 1
        return islice(chain.from_iterable(map(self._epoch, count(epoch))), start, None)

    def _epoch(self, epoch: int) -> Iterator[RawBatch]:
        skipped: list[Skipped] = []
        last = None
        for batch in self._filled(epoch, skipped):
            if last is not None:
                yield last
            last = batch
        if last is None:
            raise DataError(
                f"no picture that can be used in {', '.join(self._urls(epoch))}",
                expected="pictures with captions in every shard",
                action="check the shards with tar -tf, and data.image_column",
            )
        yield replace(last, skipped=last.skipped + tuple(skipped))

    def _filled(self, epoch: int, skipped: list[Skipped]) -> Iterator[RawBatch]:
        """Batches of an epoch; what is broken after the last one is left in `skipped`."""
        waiting: dict[Size, list[Record]] = defaultdict(list)
        first: dict[Size, list[Record]] = {}

        def batch(bucket: Size) -> RawBatch:
            records = islice(chain(waiting.pop(bucket), cycle(first[bucket])), self.batch_size)
            made = RawBatch(bucket, tuple(records), tuple(skipped))
            skipped.clear()
            return made

        for bucket, item in self._shuffled(epoch):
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            waiting[bucket].append(item)
            if len(waiting[bucket]) == self.batch_size:
                first.setdefault(bucket, waiting[bucket][:])
                yield batch(bucket)
        for bucket in sorted(waiting):
            first.setdefault(bucket, waiting[bucket][:])
            yield batch(bucket)

    def _shuffled(self, epoch: int) -> Iterator[tuple[Size, Record | Skipped]]:
        import webdataset

        chooser = random.Random(f"{self.seed}/{epoch}/{self.number}")
        shuffle = webdataset.shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, rng=chooser)
        yield from shuffle(self._read(epoch))

    def _read(self, epoch: int) -> Iterator[tuple[Size, Record | Skipped]]:
        sizes = bucket_sizes(self.shards.data)
        for url in self._urls(epoch):
            counts: Counter[Size] = Counter()
            for item in self.shards.read([url]):
                bucket = sizes[0]
                if isinstance(item, Record):
                    bucket = nearest_bucket(upright_size(item.image), sizes)
                    counts[bucket] += 1
                yield bucket, item
            self.counts.add(url, counts)

    def _urls(self, epoch: int) -> list[str]:
        """The shards that are this reader's in an epoch."""
        urls = list(self.shards.urls)
        random.Random(f"{self.seed}/{epoch}").shuffle(urls)  # the same in every reader
        return urls[self.number :: self.total]


def _candidate(record: Record) -> Candidate:
    return Candidate(record, record.reference)


def stand_ins(batch: RawBatch, index: int, upcoming: Iterator[Candidate]) -> Iterator[Candidate]:
    """A record of a batch, then those that take its place if it is broken: the upcoming ones."""
    yield _candidate(batch.records[index])
    yield from upcoming
