"""Pictures read and prepared by threads while the model encodes those before them."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from typing import TypeVar

S = TypeVar("S")
P = TypeVar("P")


def ahead(items: Iterable[S], work: Callable[[S], P], pool: Executor, count: int) -> Iterator[P]:
    """`work` of each item in order, done in the pool for up to `count` items before they are asked for."""
    rest = iter(items)
    waiting: deque[Future[P]] = deque(pool.submit(work, item) for item in islice(rest, count))
    try:
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield done
    finally:
        for future in waiting:
            future.cancel()


def batches_alike(items: Iterable[S], alike: Callable[[S], Hashable], size: int) -> Iterator[list[S]]:
    """Batches of `size` items that are alike (of one picture size, say); smaller ones at the end only."""
    groups: dict[Hashable, list[S]] = {}
    for item in items:
        group = groups.setdefault(alike(item), [])
        group.append(item)
        if len(group) == size:
            yield groups.pop(alike(item))
    yield from groups.values()
