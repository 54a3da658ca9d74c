"""Filling one store by any number of processes at once, whoever starts when."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from .claims import claim
from .store import CacheStore

T = TypeVar("T")


@dataclass(frozen=True)
class Block(Generic[T]):
    """A shard's worth of entries: by key, what each is made from."""

    sources: Mapping[str, T]

    @property
    def name(self) -> str:
        """The same in every process, and after a restart."""
        return hashlib.blake2b("\n".join(self.sources).encode(), digest_size=16).hexdigest()

    def missing(self, store: CacheStore) -> dict[str, T]:
        return {key: source for key, source in self.sources.items() if key not in store}


Make = Callable[[Mapping[str, T]], Iterator[tuple[str, dict[str, Tensor]]]]


@dataclass
class Share:
    """What one process did of a store.

    Attributes:
        computed: entries it made.
        reused: entries that were there, or that another process made meanwhile.
        failed: entries nobody could make.
    """

    computed: int = 0
    reused: int = 0
    failed: int = 0


def fill_store(store: CacheStore, blocks: Iterable[Block[T]], make: Make[T], advance: Callable[[int], object]) -> Share:
    """Make what is missing; returns when every block is done, by this process or another.

    A block is made by the process that holds its claim. Those held elsewhere are left for the end, and are waited for
    then: if their process dies, its claim is free and its block is made here.

    Args:
        blocks: the same in every process.
        make: entries for the sources it is given; it leaves out those it cannot make.
        advance: told how many entries more are done.
    """
    share, held = Share(), []
    for block in blocks:
        if not _fill_block(store, block, make, share, advance, wait=False):
            held.append(block)
    for block in held:
        _fill_block(store, block, make, share, advance, wait=True)
    return share


def _fill_block(
    store: CacheStore, block: Block[T], make: Make[T], share: Share, advance: Callable[[int], object], *, wait: bool
) -> bool:
    """False if another process holds the block."""
    missing = block.missing(store)
    computed = 0
    if missing:
        with claim(store.folder, block.name, wait=wait) as beat:
            if beat is None:
                return False
            store.refresh()  # the block may have been made since
            missing = block.missing(store)
            if missing and (entries := dict(_told(make(missing), advance, beat))):
                store.write(entries, block.name)
                computed = len(entries)
    share.computed += computed
    share.failed += len(missing) - computed
    share.reused += len(block.sources) - len(missing)
    advance(len(block.sources) - computed)
    return True


def _told(
    entries: Iterator[tuple[str, dict[str, Tensor]]], advance: Callable[[int], object], beat: Callable[[], None]
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for entry in entries:
        yield entry
        advance(1)
        beat()
