"""Files of notes, one JSON object a line, that processes add to and a crash may cut off within a line."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_NEW_LINE = b"\n"


def read_notes(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """(the notes from a byte on, the byte after the last whole one); none if there is no file.

    What is no note is left out: it was cut off, and nothing is lost that is not found again.
    """
    if not path.is_file():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        *lines, _torn = file.read().split(_NEW_LINE)
    end = start + sum(len(line) + 1 for line in lines)
    return [note for line in lines if (note := _parsed(line)) is not None], end


def append_notes(path: Path, notes: Iterable[Mapping[str, object]]) -> int:
    """Add notes, in place of a line that was cut off; the caller holds the lock. Returns the file's size."""
    path.touch()
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        if file.read() not in (_NEW_LINE, b""):
            file.seek(0)
            file.truncate(file.read().rfind(_NEW_LINE) + 1)
        file.seek(0, os.SEEK_END)
        for note in notes:
            file.write(json.dumps(note).encode() + _NEW_LINE)
        return file.tell()


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        note = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return note if isinstance(note, dict) else None
