"""A hidden folder beside the file that is being made, on its disk."""

import glob
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

_LOCK, _FOLDER = ".lock", ".partial"


@contextmanager
def workplace(target: Path) -> Iterator[Path]:
    """For the time of the `with`. What killed processes left of the same file goes first.

    Each folder has a lock beside it, which the operating system opens when its process dies.
    """
    start = f".{target.name}."
    for path in target.parent.glob(f"{glob.escape(start)}*{_LOCK}"):
        _remove_if_left(path)
    lock = FileLock(target.parent / f"{start}{uuid4().hex[:8]}{_LOCK}")
    with lock:
        folder = Path(lock.lock_file).with_suffix(_FOLDER)
        folder.mkdir()
        try:
            yield folder
        finally:
            _remove(folder)


def _remove_if_left(path: Path) -> None:
    lock = FileLock(path)
    with suppress(Timeout, OSError), lock.acquire(blocking=False):
        _remove(path.with_suffix(_FOLDER))


def _remove(folder: Path) -> None:
    """And its lock, which is held: whoever waits for it finds it gone."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # of Windows, where nobody removes what is open
        folder.with_suffix(_LOCK).unlink()
