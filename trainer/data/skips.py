"""`SkipLog`: the broken pictures of a run, each listed once, and the end of the run when there are too many."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock

from ..batch import Batch, Skipped
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
        self.meet(*batch.skipped)

    def counted(self, records: Iterable[Record | Skipped]) -> Iterator[Record | Skipped]:
        """The same records, of which those that cannot be used are a share."""
        for record in records:
            self._read += 1
            yield record

    def meet(self, *broken: Skipped) -> None:
        """List pictures that cannot be used, if they were not met before. Raises DataError as `add`."""
        new = {skipped.path: skipped for skipped in broken if skipped.path not in self._met}
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            self._catch_up()
            self._append([skipped for skipped in new.values() if skipped.path not in self._listed])
        self._met.update(new)
        self._check()

    def _catch_up(self) -> None:
        """Read what was appended since the last look."""
        for skipped in _parse(self._rest()):
            self._listed.add(skipped.path)
            self._met[skipped.path] = skipped

    def _rest(self) -> bytes:
        if not self.path.is_file():
            return b""
        with self.path.open("rb") as file:
            file.seek(self._end)
            rest = file.read()
        self._end += len(rest)
        return rest

    def _append(self, new: Sequence[Skipped]) -> None:
        lines = "".join(f"{json.dumps(vars(skipped))}\n" for skipped in new).encode()
        with self.path.open("ab") as file:
            self._end = file.tell() + file.write(lines)
        self._listed.update(skipped.path for skipped in new)
        for skipped in new:
            _logger.warning("skipped %s: %s", skipped.path, skipped.reason)

    def _check(self) -> None:
        total = self._total or self._read
        if (self._total is None and self._read < _LEAST_READ) or len(self._met) <= self._limit * total:
            return
        first = next(iter(self._met.values()))
        read = "pictures" if self._total is not None else "pictures read so far"
        raise DataError(
            f"{len(self._met)} of {total} {read} cannot be used, the first {first.path} ({first.reason})",
            expected=f"at most a share of {self._limit:g} (data.max_skipped)",
            action=f"see {self.path}; correct data.path or data.image_root, repair the pictures or raise the limit",
        )


def read_skipped(path: Path) -> list[Skipped]:
    """What a `skipped.jsonl` lists; nothing if there is none."""
    return _parse(path.read_bytes()) if path.is_file() else []


def _parse(lines: bytes) -> list[Skipped]:
    return [Skipped(**json.loads(line)) for line in lines.splitlines()]
