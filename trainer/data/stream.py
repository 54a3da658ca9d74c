"""Shards as an endless, shuffled stream of batches of one size, the same every time it is read."""

import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count, cycle, islice

from ..batch import Skipped
from ..config import DataConfig
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

    With one size an epoch is complete in itself: its last batch is filled up with records it has read. With several, a
    size that fills no batch waits for the next epochs (see `_settled`).

    Attributes:
        data: sizes of pictures, and among how many samples the next one is chosen.
        number, total: which one, of how many.
        batch_size: of its batches.
    """

    shards: Shards
    counts: ShardCounts
    data: DataConfig
    seed: int
    number: int
    total: int
    batch_size: int

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
        saved: dict[Size, int] = {}
        epoch = 0
        while start and (counts := self.counts.of(self._urls(epoch))) is not None:
            after, filled = self._settled(saved, counts)
            size = sum(count // self.batch_size for count in counts.values()) + len(filled)
            if size > start:
                break
            saved, start, epoch = after, start - size, epoch + 1
        return islice(self._epochs(epoch, saved), start, None)

    def _epochs(self, first: int, saved: dict[Size, int]) -> Iterator[RawBatch]:
        skipped: list[Skipped] = []
        for epoch in count(first):
            last = None
            for batch in self._filled(epoch, saved, skipped):
                if last is not None:
                    yield last
                last = batch
            if last is not None:
                yield replace(last, skipped=last.skipped + tuple(skipped))
                skipped.clear()

    def _settled(self, saved: Mapping[Size, int], counts: Counter[Size]) -> tuple[dict[Size, int], frozenset[Size]]:
        """(what each size has saved up after an epoch, the sizes whose last batch of the epoch is filled up).

        A size saves up what fills no batch until it makes one, so that it comes as often as it has pictures. What it
        starts with is chance, or short runs would never see the rare sizes.
        """
        after, filled = dict(saved), set()
        for bucket, number in counts.items():
            chance = random.Random(f"{self.seed}/{self.number}/{bucket}")
            total = saved.get(bucket, chance.randrange(self.batch_size)) + number
            after[bucket] = total % self.batch_size
            is_due = total // self.batch_size > number // self.batch_size
            if is_due if self.data.buckets else number % self.batch_size:
                filled.add(bucket)
        return after, frozenset(filled)

    def _filled(self, epoch: int, saved: dict[Size, int], skipped: list[Skipped]) -> Iterator[RawBatch]:
        """Batches of an epoch; what is broken after the last one is left in `skipped`, and `saved` is brought up to date.

        Raises:
            DataError: it has no usable record.
        """
        waiting: dict[Size, list[Record]] = defaultdict(list)
        first: dict[Size, list[Record]] = {}
        counts: Counter[Size] = Counter()

        def batch(bucket: Size) -> RawBatch:
            records = islice(chain(waiting.pop(bucket), cycle(first[bucket])), self.batch_size)
            made = RawBatch(bucket, tuple(records), tuple(skipped))
            skipped.clear()
            return made

        for bucket, item in self._shuffled(epoch):
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            counts[bucket] += 1
            waiting[bucket].append(item)
            if len(waiting[bucket]) == self.batch_size:
                first.setdefault(bucket, waiting[bucket][:])
                yield batch(bucket)
        if not counts:
            raise DataError(
                f"no picture that can be used in {', '.join(self._urls(epoch))}",
                expected="pictures with captions in every shard",
                action="check the shards with tar -tf, and data.image_column",
            )
        after, filled = self._settled(saved, counts)
        saved.update(after)
        for bucket in sorted(filled):
            first.setdefault(bucket, waiting[bucket][:])
            yield batch(bucket)

    def _shuffled(self, epoch: int) -> Iterator[tuple[Size, Record | Skipped]]:
        import webdataset

        chooser = random.Random(f"{self.seed}/{epoch}/{self.number}")
        held = self.data.shuffle_buffer
        shuffle = webdataset.shuffle(held, initial=held, rng=chooser)
        yield from shuffle(self._read(epoch))

    def _read(self, epoch: int) -> Iterator[tuple[Size, Record | Skipped]]:
        sizes = [bucket_sizes(self.data, side) for side in self.data.resolutions]
        for url in self._urls(epoch):
            counts: Counter[Size] = Counter()
            for item in self.shards.read([url]):
                if isinstance(item, Skipped):
                    yield sizes[0][0], item
                    continue
                upright = upright_size(item.image)
                for of_resolution in sizes:
                    bucket = nearest_bucket(upright, of_resolution)
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
