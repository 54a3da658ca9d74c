"""The members of a tar file as webdataset groups them; what no picture and no text can be is refused before it is read."""

import lzma
import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from .pictures import BROKEN

BROKEN_SHARD = (tarfile.TarError, lzma.LZMAError, *BROKEN)
"""What reading a damaged tar file, or unpacking it, raises."""
_LARGEST = 1 << 30  # bytes of a member; no picture that is decoded has as many
_LARGEST_HEADER = 1 << 20  # bytes of names and the like, which tarfile reads at once
_META = re.compile(r"__[^/]*__($|/)")  # members that webdataset keeps for itself


class _Member(tarfile.TarInfo):
    """Refused where it is no file and yet has a content that would fill the memory: an unpacked gigabyte of a name, say."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        made = super().frombuf(buf, encoding, errors)
        if made.type not in tarfile.REGULAR_TYPES and made.size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {made.size:,} bytes")
        return made


def tar_members(url: str, stream: BinaryIO) -> Iterator[dict[str, Any]]:
    """Ordinary files by name, in their order; links, folders and devices are passed over. Nothing is ever unpacked to disk.

    Raises:
        One of BROKEN_SHARD, where the file is damaged.
    """
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as tar:
        for entry in tar:
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            if not entry.isreg() or _META.match(entry.name):
                continue
            if entry.issparse() or not 0 <= entry.size <= _LARGEST:
                what = "is sparse" if entry.issparse() else f"is said to have {entry.size:,} bytes"
                raise tarfile.ReadError(f"the member {entry.name} {what}")
            file = tar.extractfile(entry)
            if file is not None:
                yield {"fname": entry.name, "data": file.read(), "__url__": url}
    yield {}  # ends the last sample
