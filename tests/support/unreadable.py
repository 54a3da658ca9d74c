"""Paths at which there is something, but no file that can be read; and what is said of each."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_PATIENCE = 20  # seconds


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Ends a test that waits for ever, as at a pipe."""

    def stop(*_: object) -> None:
        pytest.fail(f"still waiting after {_PATIENCE} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE, 1)  # again and again: what waits may be entered again
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def dangling_link(path: Path) -> Path:
    """To a file of another disk, perhaps, that is not mounted now."""
    path.symlink_to(path.with_name("not there"))
    return path


def link_to_itself(path: Path) -> Path:
    path.symlink_to(path.name)
    return path


def link_too_long(path: Path) -> Path:
    """To a name that no file system can hold."""
    path.symlink_to("x" * 300)
    return path


def link_through_a_file(path: Path) -> Path:
    """To a place inside what is no folder."""
    path.symlink_to(Path(__file__) / "inside")
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def pipe(path: Path) -> Path:
    """Whoever opens it waits for a writer."""
    os.mkfifo(path)
    return path


def read_error(path: Path) -> Path:
    """An ordinary file by its looks whose first byte cannot be read, as on a broken disk."""
    path.symlink_to("/proc/self/mem")
    return path


UNREADABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "dangling link": (dangling_link, "which is not there"),
    "link to itself": (link_to_itself, "leads back to itself"),
    "link too long": (link_too_long, "File name too long"),
    "link through a file": (link_through_a_file, "Not a directory"),
    "folder": (folder, "is a folder"),
    "pipe": (pipe, "is a pipe"),
    "read error": (read_error, "Input/output error"),
}
