"""Where shards are: files on this machine whatever their names look like, and addresses that the user wrote.

webdataset takes `pipe:COMMAND` for a command and runs it, also where that is the name of a file which a pattern found.
So only what stands in `data.path` itself is an address; everything else is opened as a file.
"""

import glob
import os
import re
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ..config import DataSetConfig
from .folders import is_left_by_a_program
from .records import DataError

_REMOTE = frozenset({"http", "https", "ftp", "ftps", "sftp", "scp", "s3", "gs", "htgs", "ais", "hf"})
_COMMAND, _FILE = "pipe", "file"
_DRIVE = re.compile(r"[a-z]:\\|\\\\", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # two letters at least: C: is a drive


class RemoteShard(str):
    """The address of a shard that is no file here."""

    __slots__ = ()


def names_shards(path: str) -> bool:
    """Whether a path that does not exist can only be meant for shards: an address, a list or a pattern of them."""
    return _scheme(path) is not None or "::" in path or ("{" in path and "}" in path) or glob.has_magic(path)


def find_shards(data: DataSetConfig) -> tuple[str, ...]:
    """Names of the shards that `data.path` means.

    Raises:
        DataError: there are none, one is missing, or a command is not allowed.
    """
    path = data.path
    place = Path(path)
    if place.is_dir():
        shards = sorted(str(shard) for shard in place.glob("*.tar") if not is_left_by_a_program(shard.name))
    elif place.exists():
        shards = [path]
    else:
        shards = [shard for part in path.split("::") for shard in _expand(part, data)]
    missing = [shard for shard in shards if not isinstance(shard, RemoteShard) and not Path(shard).is_file()]
    if not shards or missing:
        raise DataError(
            f"{missing[0]} does not exist, of {len(shards)} shards of {path}" if shards else f"no shards match {path}",
            expected="tar files such as shards/{0000..0099}.tar",
            action="correct data.path",
        )
    return tuple(shards)


def open_shard(shard: str) -> BinaryIO:
    """Its bytes, as a stream."""
    if not isinstance(shard, RemoteShard):
        return Path(shard).open("rb")
    from webdataset.gopen import gopen

    return cast(BinaryIO, gopen(str(shard)))


def _expand(part: str, data: DataSetConfig) -> list[str]:
    from webdataset.shardlists import envsubst

    part = envsubst(part)
    scheme = _scheme(part)
    if scheme == _COMMAND and not data.allow_pipe:
        raise DataError(
            f"data.path = {part!r}, which runs a command of the shell",
            expected="files, or addresses such as https://",
            action="if you wrote this command, set data.allow_pipe = true",
        )
    if scheme == _FILE:
        return [url2pathname(urlsplit(name).path) for name in _braces(part)]
    if scheme is not None:
        return [RemoteShard(name) for name in _braces(part)]
    # what there is of it stands for itself, whatever characters it has
    folder = next((parent for parent in Path(part).parents if parent.is_dir()), Path())
    return [shard for name in _braces(str(Path(part).relative_to(folder))) for shard in _matching(folder, name)]


def _braces(text: str) -> list[str]:
    from braceexpand import braceexpand

    is_windows = os.name == "nt" or _DRIVE.match(text) is not None  # where \ is no escape
    try:
        return list(braceexpand(text, escape=not is_windows))
    except ValueError:  # braces that do not match: the name of a file
        return [text]


def _matching(folder: Path, name: str) -> list[str]:
    if not glob.has_magic(name):
        return [str(folder / name)]
    found = sorted(glob.glob(name, root_dir=folder, recursive=True))
    return [str(folder / shard) for shard in found if not is_left_by_a_program(Path(shard).name)]


def _scheme(text: str) -> str | None:
    found = _SCHEME.match(text)
    scheme = found.group(1).lower() if found else None
    return scheme if scheme in _REMOTE | {_COMMAND, _FILE} else None
