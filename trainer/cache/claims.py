"""Which process makes which block: a locked file each, which the operating system unlocks when its process dies."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

_FOLDER = "claims"
_POLL_SECONDS = 0.2


@contextmanager
def claim(folder: Path, block: str, *, wait: bool) -> Iterator[bool]:
    """Hold a block for the time of the `with`.

    Args:
        folder: of the store, the same for all processes.
        block: its name.
        wait: until the process that holds it lets go or dies; otherwise false is given at once.
    """
    path = folder / _FOLDER / f"{block}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait, poll_interval=_POLL_SECONDS)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        # removed while held: whoever waits for it finds it unlinked and takes a new one (filelock looks after that)
        with suppress(OSError):
            path.unlink()
        lock.release()
