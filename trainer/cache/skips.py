"""Broken pictures met while the cache is filled."""

from collections.abc import Iterable, Iterator

from filelock import FileLock

from ..batch import Skipped
from ..data.records import Record
from ..data.skips import SkipLog


class Skips(SkipLog):
    """Lists them one at a time, where training does so by batch."""

    def counted(self, records: Iterable[Record | Skipped]) -> Iterator[Record | Skipped]:
        """The same records, of which those that cannot be used are a share."""
        for record in records:
            self._read += 1
            yield record

    def meet(self, skipped: Skipped) -> None:
        """List a picture that cannot be used.

        Raises:
            DataError: too many are broken.
        """
        if skipped.path in self._met:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            self._catch_up()
            self._append([] if skipped.path in self._listed else [skipped])
        self._met[skipped.path] = skipped
        self._check()
