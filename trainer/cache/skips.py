"""Broken pictures met while the cache is filled."""

from filelock import FileLock

from ..batch import Skipped
from ..data.skips import SkipLog


class Skips(SkipLog):
    """Lists them one at a time, where training does so by batch."""

    def saw_record(self) -> None:
        """Count a record, whether or not it can be used."""
        self._read += 1

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
