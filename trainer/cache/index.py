"""Which shard holds an entry: 20 bytes an entry, in arrays that forked data workers share without copying them."""

import hashlib
from collections.abc import Iterable

import numpy as np

_RECENT_LIMIT = 1_000_000  # entries in the dictionary, about 150 MB, before they are sorted into the arrays


class KeyIndex:
    """Shard numbers under 128-bit digests of keys. A key added twice keeps its later shard."""

    def __init__(self) -> None:
        # two rows of one contiguous half digest each, sorted by the first and then the second
        self._digests = np.empty((2, 0), np.uint64)
        self._shards = np.empty(0, np.uint32)
        self._recent: dict[bytes, int] = {}

    def __len__(self) -> int:
        """How many different keys."""
        self.settle()
        return len(self._shards)

    def add(self, keys: Iterable[str], shard: int) -> None:
        self._recent.update((_digest(key), shard) for key in keys)
        if len(self._recent) > _RECENT_LIMIT:
            self.settle()

    def find(self, key: str) -> int | None:
        digest = _digest(key)
        if digest in self._recent:
            return self._recent[digest]
        first, second = np.frombuffer(digest, np.uint64)
        start, end = (int(np.searchsorted(self._digests[0], first, side)) for side in ("left", "right"))
        place = start + int(np.searchsorted(self._digests[1, start:end], second))
        return int(self._shards[place]) if place < end and self._digests[1, place] == second else None

    def settle(self) -> None:
        """Sort what was added since into the arrays."""
        if not self._recent:
            return
        fresh = np.frombuffer(b"".join(self._recent), np.uint64).reshape(-1, 2).T
        digests = np.concatenate((fresh, self._digests), axis=1)
        shards = np.concatenate((np.fromiter(self._recent.values(), np.uint32), self._shards))
        order = np.lexsort((digests[1], digests[0]))  # stable: of equals the fresh one is first, and kept
        digests, shards = digests[:, order], shards[order]
        is_first = np.append(True, (digests[:, 1:] != digests[:, :-1]).any(axis=0))
        self._digests, self._shards, self._recent = digests[:, is_first], shards[is_first], {}


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
