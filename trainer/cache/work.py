"""What goes into the cache: which entries a data set needs, and how they are made of its pictures and captions."""

# C latent channels, h w latent size, H W pixels, S encoder input

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from .. import named
from ..backbones.backbone import Backbone
from ..batch import Skipped
from ..config import Config
from ..data.digests import DigestMemo
from ..data.pictures import BrokenPictureError, Picture, Size, decode
from ..data.prepare import (
    REFERENCE,
    TARGET,
    bucket_of,
    cached_sizes,
    caption_digest,
    entry_key,
    latents_key,
    place_target,
    target_pixels,
    variant_generator,
)
from ..data.records import Record
from ..data.shards import Shards
from ..data.skips import SkipLog
from ..data.sources import Source
from ..readers.reader import ReferenceReader
from .entries import stored
from .index import KeyIndex
from .pipeline import ahead, batches_alike
from .sharing import Block
from .training import Stores

T = TypeVar("T")
Entry = tuple[str, dict[str, Tensor]]
_DIGEST_THREADS = 2


@dataclass(frozen=True)
class Wanted:
    """One variant of a picture that has to be encoded.

    Attributes:
        key: of the entry.
        record: key of the record it is in.
        bucket: the size of a target, where the key has it.
    """

    key: str
    record: str
    picture: Picture
    digest: str = ""
    variant: int = 0
    bucket: Size | None = None

    @property
    def name(self) -> str:
        return self.picture.name


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture as the models take it: "pixels" (3, H, W) and "sizes" (6,) of a target, of a reference what its reader
    reads."""

    wanted: Wanted
    tensors: Mapping[str, Tensor]

    @property
    def shapes(self) -> tuple[tuple[str, torch.Size], ...]:
        return tuple((name, tensor.shape) for name, tensor in self.tensors.items())


class Work:
    """The work on some data sets.

    Args:
        skips: counts the records, and is told of each picture that cannot be used.
        threads: that read and prepare pictures.
    """

    def __init__(
        self,
        config: Config,
        base: Backbone,
        reader: ReferenceReader,
        sources: Sequence[Source],
        stores: Stores,
        *,
        batch_size: int,
        skips: SkipLog,
        threads: int,
    ) -> None:
        self._config, self._base, self._reader = config, base, reader
        self._sources, self._skips, self._batch_size = sources, skips, batch_size
        self._pool, self._threads = ThreadPoolExecutor(threads), threads
        # a pool of its own, so that the next block's digests do not stand before this block's pictures
        self._digest_pool = ThreadPoolExecutor(_DIGEST_THREADS)
        self._digests = _ThreadedDigests(stores.digests.path)
        self._are_counted = False  # the records, by the skips: once, whichever pictures are read first

    def close(self) -> None:
        """Write the digests and end the threads."""
        self._digest_pool.shutdown(cancel_futures=True)
        self._pool.shutdown(cancel_futures=True)
        self._digests.flush()

    def text_blocks(self) -> Iterator[Block[str]]:
        """Different captions, and the empty one."""
        records = (record for record in self._read() if isinstance(record, Record))
        captions = (caption for record in records for caption in record.captions)
        yield from self._blocks((caption_digest(caption), caption) for caption in _first("", captions))

    def latent_blocks(self) -> Iterator[Block[Wanted]]:
        self._are_counted = True
        wanted = self._wanted(self._skips.counted(self._read()), self._targets)
        yield from self._blocks((item.key, item) for item in wanted)

    def feature_blocks(self) -> Iterator[Block[Wanted]]:
        """References, each member of a group among them."""
        records = self._read() if self._are_counted else self._skips.counted(self._read())
        wanted = self._wanted(records, self._references)
        yield from self._blocks((item.key, item) for item in wanted)

    def make_text(self, missing: Mapping[str, str]) -> Iterator[Entry]:
        for batch in batches_alike(missing.items(), lambda _: None, self._batch_size):
            text = named.each(self._base.encode_text([caption for _, caption in batch]), Tensor.cpu)
            for row, (key, caption) in enumerate(batch):
                yield key, self._stored({part: tensor[row] for part, tensor in text.items()}, repr(caption))

    def make_latents(self, missing: Mapping[str, Wanted]) -> Iterator[Entry]:
        for batch in self._batches(missing, self._target):
            mean, std = self._base.encode_pixels(torch.stack([target.tensors["pixels"] for target in batch]))
            mean, std = mean.cpu(), std.cpu()
            for row, target in enumerate(batch):
                parts = {"mean": mean[row], "std": std[row], "sizes": target.tensors["sizes"]}
                yield target.wanted.key, self._stored(parts, target.wanted.name)

    def make_features(self, missing: Mapping[str, Wanted]) -> Iterator[Entry]:
        for batch in self._batches(missing, self._reference):
            prepared = named.stacked([reference.tensors for reference in batch])
            features = named.each(self._reader.read(prepared), Tensor.cpu)
            for row, reference in enumerate(batch):
                parts = {part: tensor[row] for part, tensor in features.items()}
                yield reference.wanted.key, self._stored(parts, reference.wanted.name)

    def _read(self) -> Iterator[Record | Skipped]:
        for source in self._sources:
            yield from source.read() if isinstance(source, Shards) else source

    def _blocks(self, items: Iterable[tuple[str, T]]) -> Iterator[Block[T]]:
        """Each key once, in the order of the data, so that every process comes to the same blocks."""
        seen = KeyIndex()

        def new() -> Iterator[tuple[str, T]]:
            for key, item in items:
                if seen.find(key) is None:
                    seen.add((key,), 0)
                    yield key, item

        rest = new()
        while sources := dict(islice(rest, self._config.cache.shard_size)):
            yield Block(sources)

    def _wanted(self, records: Iterable[Record | Skipped], of: Callable[[Record], list[Wanted]]) -> Iterator[Wanted]:
        def work(record: Record | Skipped) -> list[Wanted] | Skipped:
            if isinstance(record, Skipped):
                return record
            try:
                return of(record)
            except BrokenPictureError as error:
                return Skipped(record.key, error.name, error.reason)

        for found in ahead(records, work, self._digest_pool, self._config.cache.shard_size):
            if isinstance(found, Skipped):
                self._skips.meet(found)
            else:
                yield from found

    def _targets(self, record: Record) -> list[Wanted]:
        picture, data = record.image, self._config.data
        digest = self._digests.of(picture)
        return [
            Wanted(latents_key(digest, number, size), record.key, picture, digest, number, size)
            for size in cached_sizes(picture, data)
            for number in range(self._config.cache.variants)
        ]

    def _references(self, record: Record) -> list[Wanted]:
        picture = record.reference
        digest = self._digests.of(picture)
        numbers = range(self._config.cache.variants)
        return [Wanted(entry_key(digest, number), record.key, picture, digest, number) for number in numbers]

    def _batches(
        self, missing: Mapping[str, Wanted], prepare: Callable[[Wanted], Prepared]
    ) -> Iterator[list[Prepared]]:
        def work(wanted: Wanted) -> Prepared | Skipped:
            try:
                return prepare(wanted)
            except BrokenPictureError as error:
                return Skipped(wanted.record, error.name, error.reason)

        def usable() -> Iterator[Prepared]:
            for found in ahead(missing.values(), work, self._pool, self._threads + self._batch_size):
                if isinstance(found, Skipped):
                    self._skips.meet(found)
                else:
                    yield found

        yield from batches_alike(usable(), lambda prepared: prepared.shapes, self._batch_size)

    def _target(self, wanted: Wanted) -> Prepared:
        data = self._config.data
        image = decode(wanted.picture)
        generator = variant_generator(self._config.train.seed, wanted.digest, wanted.variant, TARGET)
        placement = place_target(image, data, wanted.bucket or bucket_of(wanted.picture, data), generator)
        return Prepared(wanted, {"pixels": target_pixels(image, placement), "sizes": placement.sizes})

    def _reference(self, wanted: Wanted) -> Prepared:
        generator = variant_generator(self._config.train.seed, wanted.digest, wanted.variant, REFERENCE)
        image, changes = decode(wanted.picture), self._config.data.augment
        return Prepared(wanted, self._reader.preparation.prepare(image, changes, generator, name=wanted.name))

    def _stored(self, tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        return stored(tensors, self._config.cache.precision, what)


class _ThreadedDigests:
    """A memo for each thread: one alone must not be written from two."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._own = threading.local()
        self._memos: list[DigestMemo] = []

    def of(self, picture: Picture) -> str:
        if not hasattr(self._own, "memo"):
            self._own.memo = DigestMemo(self._path)
            self._memos.append(self._own.memo)
        memo: DigestMemo = self._own.memo
        return memo.digest(picture)

    def flush(self) -> None:
        for memo in self._memos:
            memo.flush()


def _first(item: T, items: Iterable[T]) -> Iterator[T]:
    yield item
    yield from items
