"""What the nodes keep between queues, bounded in bytes: image features, tokens, and their keys and values."""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar

import comfy.model_management

T = TypeVar("T")
MAX_BYTES = 512 * 2**20


class ByteCache:
    """Least recently used goes first; everything in it can be computed again."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()

    def get(self, key: Hashable, kind: type[T]) -> T | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
        value = entry[0]
        assert isinstance(value, kind)
        return value

    def put(self, key: Hashable, value: object, num_bytes: int) -> None:
        with self._lock:
            self.num_bytes -= self._entries.pop(key, (None, 0))[1]
            if num_bytes > self.max_bytes:  # as the keys of a long animation: no reason to forget all else
                return
            self._entries[key] = (value, num_bytes)
            self.num_bytes += num_bytes
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._entries.popitem(last=False)[1][1]

    def get_or_make(self, key: Hashable, kind: type[T], make: Callable[[], T], size: Callable[[T], int]) -> T:
        """The cached value, or a new one that is then cached."""
        value = self.get(key, kind)
        if value is None:
            value = make()
            self.put(key, value, size(value))
        return value

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self.num_bytes = 0


CACHE = ByteCache(MAX_BYTES)


def free_with_models(*others: Callable[[], None]) -> None:
    """From now on, empty the cache whenever ComfyUI unloads all models: its buttons, `/free`, out of memory.

    Args:
        others: what empties other stores; called at the same time.

    ComfyUI offers no hook for this. A ModelPatcher is told when it is detached, but in the same words when it makes room
    for the next model of the same queue, and not at all if that was before. Hence the function itself is wrapped.
    """
    unload = comfy.model_management.unload_all_models

    @functools.wraps(unload)
    def unload_all_models() -> None:
        for clear in (CACHE.clear, *others):
            clear()
        unload()

    comfy.model_management.unload_all_models = unload_all_models
