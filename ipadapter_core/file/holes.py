"""How much of a file is not on the disk: a sparse file may claim any size, and its holes read as zeros."""

import os
from pathlib import Path

MOST_HOLES = 1 << 30  # bytes; a few empty blocks are what copying leaves of zeros
_MOST_PARTS = 10_000


def bytes_in_holes(path: Path) -> int:
    """Bytes of a file that its file system does not hold; 0 where it cannot tell.

    Asked for data, not for allocated blocks: those are few in a compressed file too.
    """
    if not hasattr(os, "SEEK_DATA"):
        return 0
    with path.open("rb") as file:
        number, size = file.fileno(), os.fstat(file.fileno()).st_size
        held = position = 0
        for _ in range(_MOST_PARTS):
            try:
                start = os.lseek(number, position, os.SEEK_DATA)
                position = os.lseek(number, start, os.SEEK_HOLE)
            except OSError:  # no data after this, or a file system that knows of no holes
                return size - held if position or _is_empty(number) else 0
            held += position - start
    return 0


def _is_empty(number: int) -> bool:
    """Whether the file is one hole from its start: then asking for data fails as it does past the end."""
    try:
        return os.lseek(number, 0, os.SEEK_HOLE) == 0
    except OSError:
        return False
