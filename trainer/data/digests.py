"""Which content each picture has, remembered, so that a run need not read all pictures to find their cached entries."""

import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ipadapter_core.errors import IPAdapterError

from .pictures import Picture, picture_digest

_PENDING = 256  # new digests written at once
_SEAL = 16  # hexadecimal digits at a digest's end
_PATIENCE = 60.0  # seconds to wait for another process that writes


class DigestMemo:
    """Digests of pictures' bytes by path, size and time of change.

    Safe for several processes and threads. A picture changed without a change of size and time is not noticed, as with rsync.
    A digest is written with a checksum of it and of what it belongs to: where a bit of the file has changed, the picture
    is read again.

    Args:
        path: of an SQLite file, made when the first digest is written; None: forgotten at the end of the process.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._new: dict[str, str] = {}
        self._known: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_new": {}, "_known": dict(self._known)}

    def digest(self, picture: Picture) -> str:
        """Of the picture's bytes, which are read only if they are new or changed.

        Raises:
            BrokenPictureError: the picture cannot be read.
            IPAdapterError: the memo cannot be read or written.
        """
        identity = picture.identity.encode(errors="backslashreplace").decode()  # names that are no UTF-8
        digest = self._known.get(identity) or self._new.get(identity) or self._stored(identity)
        if digest is None:
            digest = picture_digest(picture.read())
            self._new[identity] = digest
            if len(self._new) >= _PENDING:
                self.flush()
        return digest

    def flush(self) -> None:
        """Write what is new; the cache command does so at its end."""
        new, self._new = self._new, {}  # threads may add while this writes
        if self.path is None:
            self._known.update(new)
        elif new:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self._connect() as connection:
                    connection.execute("CREATE TABLE IF NOT EXISTS digests (identity TEXT PRIMARY KEY, digest TEXT)")
                    connection.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?)", _sealed(new))
                connection.close()
            except (sqlite3.Error, OSError) as error:
                raise self._failed(error) from error

    def _stored(self, identity: str) -> str | None:
        try:
            # Another thread's first write makes an empty file before it makes the table.
            if self.path is None or not self.path.stat().st_size:
                return None
        except FileNotFoundError:
            return None
        except OSError as error:  # a share that went away
            raise self._failed(error) from error
        try:
            connection = self._connect()  # one a query: a connection must not cross a fork, and opening takes 0.1 ms
            row = connection.execute("SELECT digest FROM digests WHERE identity = ?", (identity,)).fetchone()
            connection.close()
        except (sqlite3.Error, UnicodeError, OverflowError) as error:
            raise self._failed(error) from error
        return _unsealed(identity, row[0]) if row else None

    def _connect(self) -> sqlite3.Connection:
        assert self.path is not None
        return sqlite3.connect(self.path, timeout=_PATIENCE)

    def _failed(self, error: Exception) -> IPAdapterError:
        return IPAdapterError(
            f"{self.path} cannot be read or written ({error})",
            expected="the digests of pictures, as `ipadapter cache` keeps them",
            action="delete this file; it is made again",
        )


def _sealed(digests: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((identity, f"{digest}{_seal(identity, digest)}") for identity, digest in digests.items())


def _unsealed(identity: str, value: object) -> str | None:
    """The digest; None if its seal, or what it is the seal of, has changed."""
    digest, seal = str(value)[:-_SEAL], str(value)[-_SEAL:]
    return digest if seal == _seal(identity, digest) else None


def _seal(identity: str, digest: str) -> str:
    return hashlib.blake2b(f"{identity}\n{digest}".encode(), digest_size=_SEAL // 2).hexdigest()
