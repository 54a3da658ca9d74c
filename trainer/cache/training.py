"""`Stores`: the cache as training reads it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..backbones.backbone import Backbone
from ..config import Config, DataConfig
from ..data.digests import DigestMemo
from ..data.pictures import BrokenPictureError
from ..data.prepare import cached_sizes, caption_digest, entry_key, latents_key
from ..data.records import Record
from ..data.sample import Stores as SampleStores
from ..data.skips import SKIPPED, read_skipped
from ..readers.reader import ReferenceReader
from .recipes import features_recipe, latents_recipe, text_recipe
from .store import CacheError, CacheStore

DIGESTS = "digests.sqlite"
_CHECKED = 10_000  # records, spread evenly: looking at all of a large data set would take longer than loading the model


@dataclass(frozen=True, eq=False, kw_only=True)
class Stores(SampleStores):
    """Entries of one config. Small when pickled, and safe in forked data workers.

    What is not in `cache.parts` is None; the others do not depend on it, so that one cache serves every choice.

    Attributes:
        latents: {"mean", "std" (C, h, w), "sizes" (6,)} under `latents_key` of the target.
        features: as the reader names them, under `entry_key` of the reference.
        text: as the model names them, under `caption_digest`; that of "" is always there.
        digests: the memo that finds the entries of pictures without reading them.
        folder: the cache.
        variants: how many of each picture there are.
        data: the sizes they are at.
    """

    latents: CacheStore | None
    features: CacheStore | None
    text: CacheStore | None
    digests: DigestMemo
    folder: Path
    variants: int
    data: DataConfig

    @property
    def all(self) -> tuple[CacheStore, ...]:
        """Those of `cache.parts`."""
        return tuple(store for store in (self.text, self.latents, self.features) if store is not None)

    def has(self, record: Record) -> bool:
        """Whether all entries of a record are there. Raises BrokenPictureError if a picture is not."""
        return all(key in store for store, keys in self._wanted(record) for key in keys)

    def _wanted(self, record: Record) -> list[tuple[CacheStore, list[str]]]:
        """The keys that each store should have of a record; pictures are looked at for what is made of them alone."""
        wanted, variants = [], range(self.variants)
        if self.text is not None:
            wanted.append((self.text, [caption_digest(caption) for caption in record.captions]))
        if self.latents is not None:
            target, sizes = self.digests.digest(record.image), cached_sizes(record.image, self.data)
            wanted.append((self.latents, [latents_key(target, number, size) for number in variants for size in sizes]))
        if self.features is not None:
            reference = self.digests.digest(record.reference)
            wanted.append((self.features, [entry_key(reference, number) for number in variants]))
        return wanted

    def require(self, records: Sequence[Record]) -> None:
        """Check that records have their entries; of many, an even choice is looked at.

        Raises:
            CacheError: some lack them, other than pictures found to be broken when the cache was filled.
        """
        chosen = range(0, len(records), max(1, len(records) // _CHECKED))
        broken = {skipped.path for skipped in read_skipped(self.folder / SKIPPED)}
        lacking = 0
        for index in chosen:
            record = records[index]
            if broken.intersection((record.image.name, record.reference.name)):
                continue
            try:
                lacking += not self.has(record)
            except BrokenPictureError:  # gone since: training skips and counts it
                continue
        if lacking:
            looked_at = "" if len(chosen) == len(records) else " looked at"
            raise CacheError(
                f"{lacking} of {len(chosen)} pictures{looked_at} are not in the cache {self.folder} as this config "
                "wants them",
                expected="every picture and caption encoded with these models, sizes and settings",
                action="run `ipadapter cache CONFIG`, or remove cache.path to encode in every step",
            )


def open_stores(config: Config, base: Backbone, reader: ReferenceReader) -> Stores:
    """Open the cache of a config; nothing is written.

    Raises:
        CacheError: `cache.path` is not set.
    """
    folder, parts = check_path(config), config.cache.parts
    return Stores(
        latents=CacheStore(folder, "latents", latents_recipe(config, base)) if "latents" in parts else None,
        features=CacheStore(folder, "features", features_recipe(config, reader)) if "features" in parts else None,
        text=CacheStore(folder, "text", text_recipe(config, base)) if "text" in parts else None,
        digests=DigestMemo(folder / DIGESTS),
        folder=folder,
        variants=config.cache.variants,
        data=config.data,
    )


def check_path(config: Config) -> Path:
    """The cache's folder. Raises CacheError if the config names none."""
    if config.cache.path is None:
        raise CacheError(
            "a config without cache.path",
            expected="a folder for the cache",
            action="set cache.path, for instance --set cache.path=cache",
        )
    return Path(config.cache.path)
