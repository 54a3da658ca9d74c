"""`fill`: make every entry of the cache that a config needs and that is not there."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from ..backbones.backbone import Backbone
from ..config import Config
from ..data.shards import Shards
from ..data.skips import SKIPPED, SkipLog
from ..data.sources import Source
from ..readers.reader import ReferenceReader
from ..storage import storage
from .sharing import Block, Make, Share, fill_store
from .store import CacheStore
from .training import check_path, open_stores
from .work import Work

T = TypeVar("T")


@dataclass(frozen=True)
class FillReport:
    """What `fill` did.

    Attributes:
        shares: by kind (text, latents, features), of those in `cache.parts`.
        nbytes: of each kind on the disk afterwards, the work of other processes included.
        skipped: pictures that cannot be used.
    """

    folder: Path
    shares: dict[str, Share]
    nbytes: dict[str, int]
    skipped: int
    seconds: float

    @property
    def computed(self) -> int:
        """Entries of all kinds this process made."""
        return sum(share.computed for share in self.shares.values())


def fill(
    config: Config,
    base: Backbone,
    reader: ReferenceReader,
    sources: Sequence[Source],
    *,
    batch_size: int = 8,
    progress: bool = False,
) -> FillReport:
    """Fill the cache for some data, together with whichever other processes do so.

    Args:
        base: with autoencoder and text encoders, as far as `cache.parts` needs them.
        sources: the data, and that of validation.
        batch_size: pictures or captions encoded at once.
        progress: show a bar for each kind.

    Raises:
        CacheError: no cache.path, a disk that cannot be written, or values the precision cannot hold.
        DataError: too many pictures are broken.
    """
    start = time.perf_counter()
    with storage("the cache", check_path(config)):
        return _fill(config, base, reader, sources, batch_size, progress, start)


def _fill(
    config: Config,
    base: Backbone,
    reader: ReferenceReader,
    sources: Sequence[Source],
    batch_size: int,
    progress: bool,
    start: float,
) -> FillReport:
    stores = open_stores(config, base, reader)
    for store in stores.all:
        store.clean()
    total = _count(sources)
    skips = SkipLog(stores.folder / SKIPPED, config.data.max_skipped, total)
    work = Work(
        config,
        base,
        reader,
        sources,
        stores,
        batch_size=batch_size,
        skips=skips,
        threads=max(1, config.data.workers),
    )
    entries = None if total is None else total * stores.variants
    latents = None if entries is None else entries * len(config.data.resolutions)

    def share(store: CacheStore, blocks: Iterable[Block[T]], make: Make[T], expected: int | None) -> Share:
        with tqdm(total=expected, desc=store.kind, unit=" entries", disable=not progress) as bar:
            done = fill_store(store, blocks, make, bar.update)
            bar.total = bar.n  # what occurs twice, or is broken early, was counted in
            return done

    shares = {}
    try:
        if stores.text is not None:
            shares["text"] = share(stores.text, work.text_blocks(), work.make_text, total)
        if stores.latents is not None:
            shares["latents"] = share(stores.latents, work.latent_blocks(), work.make_latents, latents)
        if stores.features is not None:
            shares["features"] = share(stores.features, work.feature_blocks(), work.make_features, entries)
    finally:
        work.close()
    nbytes = {store.kind: store.nbytes for store in stores.all}
    return FillReport(stores.folder, shares, nbytes, len(skips), time.perf_counter() - start)


def _count(sources: Sequence[Source]) -> int | None:
    """Records of all; None if one is a stream."""
    counts = [None if isinstance(source, Shards) else len(source) for source in sources]
    return None if None in counts else sum(count for count in counts if count is not None)
