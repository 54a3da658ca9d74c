"""`SkipLog`: the broken pictures of a run, each listed once, and the end of the run when there are too many."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..batch import Batch, Skipped
from .notes import append_notes, read_notes
from .records import DataError, Record

SKIPPED = "skipped.jsonl"
"""Name of the list, in a run's folder and in the cache's."""
_LEAST_READ = 100  # samples of a stream before their broken share means anything
_logger = logging.getLogger(__name__)


class SkipLog:
    """Writes `skipped.jsonl`; processes and resumed runs share it.

    Args:
        path: of the file, appended to.
        limit: largest share of broken pictures, `data.max_skipped`.
        total: records of the data set; None for a stream, of whose samples read so far the share is taken then.
    """

    def __init__(self, path: Path, limit: float, total: int | None) -> None:
        self.path = path
        self._limit = limit
        self._total = total
        self._read = 0
        self._broken = 0  # of those, as often as they were met
        self._end = 0  # of what is known of the file, in bytes
        self._listed: set[str] = set()
        self._met: dict[str, Skipped] = {}
        self._catch_up()
        self._met.clear()  # earlier sessions' pictures may be repaired by now

    def __len__(self) -> int:
        """Broken pictures that were met since this process started, by it or by those that share the file."""
        return len(self._met)

    def add(self, batch: Batch) -> None:
        """List what a batch met for the first time.

        Raises:
            DataError: too many are broken.
        """
        self._read += len(batch.positions) + len(batch.skipped)
        self._broken += len({skipped.path for skipped in batch.skipped})
        self._list(batch.skipped)
        # of a stream, which has no total, a process knows what it read itself; others' broken pictures are no part of it
        self._check(len(self._met) if self._total is not None else self._broken)

    def counted(self, records: Iterable[Record | Skipped]) -> Iterator[Record | Skipped]:
        """The same records, of which those that cannot be used are a share."""
        for record in records:
            self._read += 1
            yield record

    def meet(self, *broken: Skipped) -> None:
        """List pictures that cannot be used, of records that every process reads. Raises DataError as `add`."""
        self._list(broken)
        self._check(len(self._met))

    def _list(self, broken: Iterable[Skipped]) -> None:
        new = {skipped.path: skipped for skipped in broken if skipped.path not in self._met}
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            self._catch_up()
            self._append([skipped for skipped in new.values() if skipped.path not in self._listed])
        self._met.update(new)

    def _catch_up(self) -> None:
        """Read what was appended since the last look."""
        notes, self._end = read_notes(self.path, self._end)
        for skipped in _entries(notes):
            self._listed.add(skipped.path)
            self._met[skipped.path] = skipped

    def _append(self, new: Sequence[Skipped]) -> None:
        self._end = append_notes(self.path, map(asdict, new))
        self._listed.update(skipped.path for skipped in new)
        for skipped in new:
            _logger.warning("skipped %s: %s", skipped.path, skipped.reason)

    def _check(self, broken: int) -> None:
        total = self._total or self._read
        if (self._total is None and self._read < _LEAST_READ) or broken <= self._limit * total:
            return
        first = next(iter(self._met.values()))
        read = "pictures" if self._total is not None else "pictures read so far"
        raise DataError(
            f"{broken} of {total} {read} cannot be used, the first {first.path} ({first.reason})",
            expected=f"at most a share of {self._limit:g} (data.max_skipped)",
            action=f"see {self.path}; correct data.path or data.image_root, repair the pictures or raise the limit",
        )


def read_skipped(path: Path) -> list[Skipped]:
    """What a `skipped.jsonl` lists; nothing if there is none."""
    return list(_entries(read_notes(path)[0]))


def _entries(notes: Iterable[Mapping[str, Any]]) -> Iterator[Skipped]:
    names = [field.name for field in fields(Skipped)]
    return (Skipped(**note) for note in notes if sorted(note) == sorted(names))
