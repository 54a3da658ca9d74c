"""Which process makes which block: a locked file each, which the operating system unlocks when its process dies.

Some shares have no locks: there the file itself is one, and stays when its machine dies. Who works touches it, and what
nobody has touched for long is taken.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from .store import CacheError

_FOLDER = "claims"
_POLL_SECONDS = 0.2
_CHECKED_SECONDS = 5.0  # how often it is looked whether who is waited for still works
_BEAT_SECONDS = 30.0
_DEAD_SECONDS = 900.0  # far more than a batch takes
_logger = logging.getLogger(__name__)
Beat = Callable[[], None]


@contextmanager
def claim(folder: Path, block: str, *, wait: bool) -> Iterator[Beat | None]:
    """Hold a block for the time of the `with`; gives what is to be called as the work advances.

    Args:
        folder: of the store, the same for all processes.
        block: its name.
        wait: until the process that holds it lets go or dies; otherwise None is given at once.

    Raises:
        CacheError: nothing can be written or locked there.
    """
    path = folder / _FOLDER / f"{block}.lock"
    try:
        lock = _lock(path, wait=wait)
    except OSError as error:
        raise CacheError(
            f"{path.parent} cannot be written, or its files not be locked ({error.strerror or error})",
            expected="a folder that can be written, on a disk whose files can be locked",
            action="set cache.path to another disk; what is there already is kept",
        ) from error
    if lock is None:
        yield None
        return
    try:
        yield _beat(path)
    finally:
        # removed while held: whoever waits for it finds it unlinked and takes a new one (filelock looks after that)
        with suppress(OSError):
            path.unlink()
        lock.release()


def _lock(path: Path, *, wait: bool) -> FileLock | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, watch = FileLock(path), _Watch(path)
    while True:
        try:
            lock.acquire(timeout=_CHECKED_SECONDS if wait else 0, poll_interval=_POLL_SECONDS)
        except Timeout:
            if not wait:
                return None
            if watch.is_abandoned():
                _logger.warning("cache: taking over a block whose process has not been heard of (%s)", path)
                path.unlink(missing_ok=True)
            continue
        return lock


class _Watch:
    """Whether a claim is a lock by being there, as its content tells, that nobody has touched for long.

    Clocks of machines differ, and jump: a time of change in the future says nothing, and is watched until it is old here.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._touched, self._since = path, 0.0, time.monotonic()

    def is_abandoned(self) -> bool:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return False
        if status.st_mtime != self._touched:
            self._touched, self._since = status.st_mtime, time.monotonic()
        age = max(time.time() - status.st_mtime, time.monotonic() - self._since)
        return status.st_size > 0 and age > _DEAD_SECONDS


def _beat(path: Path) -> Beat:
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last >= _BEAT_SECONDS:
            last = time.monotonic()
            with suppress(OSError):
                path.touch()

    return beat
