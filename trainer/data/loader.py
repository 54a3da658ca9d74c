"""`open_batches`: the endless batches of one process, prepared by worker processes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from ipadapter_core.errors import IPAdapterError

from ..batch import Batch, Skipped
from ..config import Config, DataConfig
from ..draws import sample_generator
from .order import Order, Portion
from .pictures import BrokenPictureError
from .records import DataError, Records
from .sample import Candidate, Geometry, Sample, SampleMaker, Stores, collate
from .scan import scan_buckets
from .shard_counts import ShardCounts
from .shards import Shards
from .stream import Reader, stand_ins

__all__ = ["Geometry", "Stores", "World", "held_out_batches", "open_batches", "portions_of", "stream_workers"]
SHARD_COUNTS = "shards.jsonl"
"""File that says how many samples each shard of a stream has."""
_ATTEMPTS = 1000  # records tried in place of a broken one; below the limit of broken ones a few are enough


@dataclass(frozen=True)
class World:
    """Which process this is, of how many."""

    rank: int = 0
    size: int = 1


@dataclass(frozen=True)
class _Failure:
    """A user's error on its way from a worker, where an exception would arrive as a traceback."""

    kind: type[IPAdapterError]
    message: str

    def error(self) -> IPAdapterError:
        return self.kind.__new__(self.kind, self.message)  # the message is made already


def open_batches(
    config: Config,
    source: Records | Shards,
    world: World,
    geometry: Geometry,
    start_step: int = 0,
    stores: Stores | None = None,
    lists: Path | None = None,
) -> Iterator[Batch]:
    """Endless batches of `train.batch_size` samples from an optimiser step on, as if it had read all before.

    Records come in an order that the number of processes does not change (see `Order`). A stream is shared out by
    shards, so its order depends on the number of processes and workers, and going on with as many is exact; the
    epoch's beginning is read again for that, without decoding (see `Reader.batches`).

    Args:
        lists: folder where the sizes of shards are noted; the run's if not given.

    Raises:
        DataError: too few shards for the processes, no usable picture, or a part the cache lacks.
    """
    maker = SampleMaker(config, geometry, stores or Stores())
    first = start_step * config.train.accumulate
    broken: tuple[Skipped, ...] = ()
    if isinstance(source, Shards):
        workers = stream_workers(source, world, config.data.workers)
        dataset: Dataset[Batch | _Failure] = _StreamBatches(
            source, maker, world, first, max(workers, 1), (lists or config.run) / SHARD_COUNTS
        )
        loader: DataLoader[Any] = _loader(dataset, None, workers)
    else:
        members, broken = scan_buckets(
            source, config.data, config.data.resolutions, show=world.rank == 0, processes=world.size
        )
        order = Order(
            config.train.seed, members, config.train.batch_size * world.size, portions_of(source, config.data)
        )
        loader = _loader(_IndexedBatches(source, order, maker, world), count(first), config.data.workers)
    return _results(loader, broken)


def portions_of(records: Records, data: DataConfig) -> list[Portion]:
    """The data sets that records are of."""
    sets = zip(records.sets(), data.sets, strict=False)
    return [Portion(numbers, one.repeats, one.weight) for numbers, one in sets]


def held_out_batches(
    config: Config, records: Records, geometry: Geometry, stores: Stores | None = None
) -> Iterator[Batch]:
    """Each record once, in a batch of its own, as `SampleMaker.is_plain` says.

    Broken pictures are left out. With stores, the first variant is read as it was cached.
    """
    maker = SampleMaker(config, geometry, stores or Stores(), is_plain=True)
    members, _ = scan_buckets(records, config.data, (config.data.resolution,), show=False)
    buckets = {number: bucket for bucket, numbers in members.items() for number in numbers}
    for number, bucket in sorted(buckets.items()):
        candidate = _candidate(records, number, config, number)
        with suppress(BrokenPictureError):
            yield collate([maker.make(candidate, number, bucket)], ())


class _IndexedBatches(Dataset[Batch | _Failure]):
    """Batch by number, counted over the whole run in forwards of this process."""

    def __init__(self, records: Records, order: Order, maker: SampleMaker, world: World) -> None:
        self._records = records
        self._order = order
        self._maker = maker
        self._world = world

    def __getitem__(self, number: int) -> Batch | _Failure:
        size = self._maker.config.train.batch_size
        start = (number * self._world.size + self._world.rank) * size
        return _caught(partial(self._batch, range(start, start + size)))

    def _batch(self, positions: Iterable[int]) -> Batch:
        samples: list[Sample] = []
        skipped: list[Skipped] = []
        for position in positions:
            _, bucket = self._order.at(position)
            sample, broken = self._maker.first_usable(self._candidates(position), position, bucket)
            samples.append(sample)
            skipped += broken
        return collate(samples, tuple(skipped))

    def _candidates(self, position: int) -> Iterator[Candidate]:
        number, bucket = self._order.at(position)
        yield _candidate(self._records, number, self._maker.config, position)
        for attempt in range(_ATTEMPTS):
            number = self._order.replacement(position, bucket, attempt)
            yield _candidate(self._records, number, self._maker.config, position)


@dataclass(eq=False)
class _StreamBatches(IterableDataset[Batch | _Failure]):
    """This process's part of a stream, each worker reading shards of its own."""

    shards: Shards
    maker: SampleMaker
    world: World
    first: int
    workers: int
    counts: Path

    def __iter__(self) -> Iterator[Batch | _Failure]:
        worker = get_worker_info()
        # the loader asks worker 0 first, whichever number is to come first
        turn = ((worker.id if worker else 0) + self.first) % self.workers
        config = self.maker.config
        data = config.data
        recipe = f"{data.resolution}/{data.bucket_step if data.buckets else None}/{len(self.shards.held_out)}"
        recipe += "".join(f"/{side}" for side in data.more_resolutions)
        reader = Reader(
            self.shards,
            ShardCounts(self.counts, recipe),
            data,
            config.train.seed,
            number=self.world.rank * self.workers + turn,
            total=self.world.size * self.workers,
            batch_size=config.train.batch_size,
        )
        start = -(-(self.first - turn) // self.workers)
        batches = reader.batches(start)
        for number in count(start * self.workers + turn, self.workers):
            yield _caught(partial(self._batch, number, batches))

    def _batch(self, number: int, batches: Iterator[Any]) -> Batch:
        raw, upcoming = next(batches)
        size = len(raw.records)
        start = (number * self.world.size + self.world.rank) * size
        samples, skipped = [], list(raw.skipped)
        for index in range(size):
            sample, broken = self.maker.first_usable(stand_ins(raw, index, upcoming), start + index, raw.bucket)
            samples.append(sample)
            skipped += broken
        return collate(samples, tuple(skipped))


def stream_workers(shards: Shards, world: World, wanted: int) -> int:
    """Workers per process that each find a shard to read. Raises DataError if a process finds none."""
    if len(shards.urls) < world.size:
        raise DataError(
            f"{len(shards.urls)} shards for {world.size} processes",
            expected="at least one shard for each",
            action="split the data into more shards, or start fewer processes",
        )
    return min(wanted, len(shards.urls) // world.size)


def _loader(dataset: Dataset[Any], numbers: Iterable[int] | None, workers: int) -> DataLoader[Any]:
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=2 if workers else None,
    )


def _results(loader: DataLoader[Any], skipped: tuple[Skipped, ...]) -> Iterator[Batch]:
    for item in _alive(loader):
        if isinstance(item, _Failure):
            raise item.error()
        yield replace(item, skipped=skipped + item.skipped) if skipped else item
        skipped = ()


def _alive(loader: DataLoader[Any]) -> Iterator[Batch | _Failure]:
    """What the workers send. Raises DataError when one has died, as on a share that went away with a mapped file."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that reads pictures ended ({str(error).splitlines()[0].rstrip('.')})",
            expected="data.path and cache.path that stay there, and memory for data.workers processes",
            action="see that the folders are there, or lower data.workers; the same command then goes on from the last "
            "checkpoint",
        ) from error


def _caught(make: Callable[[], Batch]) -> Batch | _Failure:
    try:
        return make()
    except IPAdapterError as error:
        return _Failure(type(error), str(error))


def _candidate(records: Records, number: int, config: Config, position: int) -> Candidate:
    generator = sample_generator(config.train.seed, position, "group")
    if config.data.references_together == 1:
        return Candidate(records[number], records.reference(number, generator))
    first, *others = records.together(number, generator, config.data.references_together)
    return Candidate(records[number], first, tuple(others))
