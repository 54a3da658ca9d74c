"""Checksums of a checkpoint's files, and of the note that holds them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FILES, SUM = "files", "sum"
_CHUNK = 1 << 22  # bytes


def file_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file by its name in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _of_file(path) for path in files}


def sealed(note: Mapping[str, Any]) -> dict[str, Any]:
    """A note with its own checksum."""
    return {**note, SUM: _of_note(note)}


def is_whole(note: Mapping[str, Any]) -> bool:
    """Whether a note is as `sealed` gave it."""
    return note.get(SUM) == _of_note({name: value for name, value in note.items() if name != SUM})


def changed_files(folder: Path, stated: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """Files that are not as they were, each with what is wrong."""
    for name, expected in stated.items():
        path = folder / name
        try:
            if _of_file(path) != expected:
                yield path, "is not as it was written"
        except OSError as error:
            yield path, f"cannot be read ({error.strerror or error})"


def _of_note(note: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(note, sort_keys=True).encode()).hexdigest()


def _of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
