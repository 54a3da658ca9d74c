"""`CacheStore`: entries of one kind, in safetensors shards that are complete or not there."""

import functools
import hashlib
import json
import logging
import os
import shutil
import struct
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ipadapter_core.errors import IPAdapterError, UnreadableFileError
from ipadapter_core.file.container import (
    TensorFile,
    read_header,
    read_tensors,
    sync,
    tensor_hash,
    write_safetensors,
)
from ipadapter_core.file.header import HASH_KEY

from .index import KeyIndex
from .sums import entry_sum, read_sums, written_sums

SUFFIX = ".safetensors"
_KIND = "cache"  # in messages
_PARTIAL = ".partial"
_RECIPE_FILE = "recipe.json"
_OPEN_SHARDS = 1024  # kept open per process; Linux maps at most 65,530 files
_HASH_PLACE = "0" * 64
_PARTIAL_AGE = 24 * 3600  # seconds after which nobody writes a partial file any more
_logger = logging.getLogger(__name__)


class CacheError(IPAdapterError):
    """A cache that cannot be written, or that lacks what is asked of it."""


@dataclass(frozen=True)
class StaleFolder:
    """Entries of the same kind made with another recipe: nothing reads them now."""

    path: Path
    nbytes: int
    recipe: Mapping[str, object]


class CacheStore:
    """Entries of one kind made with one recipe.

    An entry is a few named tensors under a key, stored as `<key>/<part>`; all entries have the same parts. The recipe
    says how they were made, and its hash is in the folder's name, so that entries made otherwise are never mixed. A
    shard is written aside, synced and renamed: a kill leaves it complete or not there. Shards that are damaged are
    reported once and count as missing; an entry that is not as it was written is never given.

    Args:
        folder: the cache; the entries go to `<folder>/<kind>-<hash of the recipe>`, made when the first is written.
        kind: latents, features or text.
        recipe: all that changes an entry, as JSON can hold it.
    """

    def __init__(self, folder: Path, kind: str, recipe: Mapping[str, object]) -> None:
        self.kind = kind
        self.recipe = dict(recipe)
        digest = hashlib.blake2b(json.dumps(self.recipe, sort_keys=True).encode(), digest_size=8).hexdigest()
        self.folder = folder / f"{kind}-{digest}"
        self.damaged: list[Path] = []
        self._shards: list[Path] = []
        self._seen: set[str] = set()
        self._parts: tuple[str, ...] = ()
        self._index = KeyIndex()
        self._open = functools.lru_cache(_OPEN_SHARDS)(_open_shard)
        self.refresh()
        self._index.settle()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open = functools.lru_cache(_OPEN_SHARDS)(_open_shard)

    def __contains__(self, key: str) -> bool:
        return self._index.find(key) is not None

    def __len__(self) -> int:
        return len(self._index)

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return _size_of(self.folder)

    def get(self, key: str) -> dict[str, Tensor]:
        """The tensors of an entry, mapped from the file and not to be written to.

        Raises:
            KeyError: there is no such entry.
            CacheError: its shard was removed or damaged since the store was opened, or the entry is not as it was written.
        """
        shard = self._index.find(key)
        if shard is None:
            raise KeyError(key)
        path = self._shards[shard]
        try:
            file, sums = self._open(path)
            entry = {part: file.get_tensor(f"{key}/{part}") for part in self._parts}
        except (SafetensorError, OSError, ValueError) as error:
            raise CacheError(
                f"{path} cannot be read any more ({error})",
                expected="the shard that was there when the cache was opened",
                action="run `ipadapter cache CONFIG` again, which recomputes what is missing",
            ) from error
        if sums is not None and sums.get(key) != entry_sum(key, entry):
            raise CacheError(
                f"{path}, in which {key} is not as it was written",
                expected="what `ipadapter cache` wrote",
                action="run `ipadapter cache CONFIG --check`, which deletes what is damaged and makes it again",
            )
        return entry

    def write(self, entries: Mapping[str, Mapping[str, Tensor]], name: str | None = None) -> None:
        """Add entries as one new shard.

        Args:
            entries: tensors by part by key; the parts are the same for all.
            name: of the unfinished file. A writer that was killed leaves it, and the next one of that name replaces it.

        Raises:
            CacheError: the disk is full or cannot be written.
        """
        parts = {tuple(sorted(tensors)) for tensors in entries.values()} | {self._parts or ()} - {()}
        assert len(parts) == 1, f"entries of {self.kind} with different parts: {parts}"
        path = self.folder / f"{uuid.uuid4().hex}{SUFFIX}"
        partial = self.folder / f"{name or path.stem}{_PARTIAL}"
        tensors = {f"{key}/{part}": tensor for key, entry in entries.items() for part, tensor in entry.items()}
        try:
            self._prepare()
            write_safetensors(partial, tensors, {HASH_KEY: _HASH_PLACE, **written_sums(entries)})
            _seal(partial)
            partial.replace(path)
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                partial.unlink()
            raise CacheError(
                f"{self.folder} cannot be written ({error})",
                expected="a folder that can be written, on a disk with room",
                action="free some space or set cache.path to another disk; what is there already is kept",
            ) from error
        (self._parts,) = parts
        self._index.add(entries, self._number(path))

    def refresh(self) -> None:
        """Take notice of the shards that other processes have written since."""
        for path in sorted(path for path in self._files(SUFFIX) if path.name not in self._seen):
            self._seen.add(path.name)
            try:
                names = _entry_names(path)
            except FileNotFoundError:
                continue
            except UnreadableFileError as error:
                if not path.exists():  # damaged, and removed by another process just now
                    continue
                self.damaged.append(path)
                _logger.warning("cache: %s is damaged, its entries count as missing (%s)", path, error)
                continue
            self._parts = self._parts or tuple(sorted({name.rpartition("/")[2] for name in names}))
            self._index.add((name.rpartition("/")[0] for name in names), self._number(path))

    def check(self) -> Iterator[tuple[Path, str | None]]:
        """Read every shard again: each with what is wrong with it, or None."""
        for path in sorted(self._files(SUFFIX)):
            try:
                _entry_names(path)
                file = read_tensors(path, _KIND, verify_again=True)
            except UnreadableFileError as error:
                yield path, str(error)
                continue
            wrong = _changed(file)
            if wrong is not None:
                yield path, f"{wrong} is not as it was written"
                continue
            endless = [name for name, tensor in file.tensors.items() if not tensor.isfinite().all()]
            yield path, f"NaN or infinite values in {endless[0]}" if endless else None

    def remove(self, paths: Iterable[Path]) -> None:
        """Delete damaged shards; open the store again to see what is missing then."""
        for path in paths:
            path.unlink(missing_ok=True)
        self.damaged = [path for path in self.damaged if path.exists()]

    def clean(self) -> None:
        """Delete what killed writers left: damaged shards, and unfinished files nobody has written to for a day."""
        self.remove(self.damaged)
        for path in self._files(_PARTIAL):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _PARTIAL_AGE:
                    path.unlink()

    def stale(self) -> list[StaleFolder]:
        """Folders of the same kind made with other recipes."""
        if not self.folder.parent.is_dir():
            return []
        others = sorted(path for path in self.folder.parent.glob(f"{self.kind}-*") if path.is_dir())
        return [StaleFolder(path, _size_of(path), _read_recipe(path)) for path in others if path != self.folder]

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        recipe = self.folder / _RECIPE_FILE
        if not recipe.exists():
            aside = recipe.with_suffix(f".{uuid.uuid4().hex}{_PARTIAL}")
            aside.write_text(json.dumps(self.recipe, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            aside.replace(recipe)

    def _files(self, suffix: str) -> Iterator[Path]:
        if self.folder.is_dir():
            yield from (path for path in self.folder.iterdir() if path.suffix == suffix)

    def _number(self, path: Path) -> int:
        self._seen.add(path.name)
        self._shards.append(path)
        return len(self._shards) - 1


def prune(stale: Iterable[StaleFolder]) -> int:
    """Delete folders made with other recipes; gives the bytes freed."""
    freed = 0
    for folder in stale:
        shutil.rmtree(folder.path)
        freed += folder.nbytes
    return freed


def _open_shard(path: Path) -> tuple[Any, Mapping[str, object] | None]:
    """The file and the checksums of its entries. An earlier version's has only one of all, which is looked at now."""
    file: Any = safe_open(path, framework="pt")
    metadata = file.metadata() or {}
    sums = read_sums(metadata)
    if sums is None and metadata.get(HASH_KEY) != tensor_hash(path):
        raise ValueError("it is not as it was written")
    return file, sums


def _changed(file: TensorFile) -> str | None:
    """The first entry of a shard that is not as it was written; "it" where nothing says how it was."""
    sums = read_sums(file.metadata)
    if sums is None:  # an earlier version's, whose one checksum has been looked at
        return None if HASH_KEY in file.metadata else "it"
    entries: dict[str, dict[str, Tensor]] = {key: {} for key in sums}
    for name, tensor in file.tensors.items():
        key, _, part = name.rpartition("/")
        if key in entries:
            entries[key][part] = tensor
    return next((key for key, entry in entries.items() if entry_sum(key, entry) != sums[key]), None)


def _entry_names(path: Path) -> list[str]:
    """Names of a shard whose file is as long as its header says, and whose entries are those that were written.

    Raises:
        UnreadableFileError: it is not.
    """
    header = read_header(path, _KIND)
    with path.open("rb") as file:
        start = 8 + struct.unpack("<Q", file.read(8))[0]
    entries: dict[str, Any] = {name: entry for name, entry in header.items() if name != "__metadata__"}
    described = start + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    size = path.stat().st_size
    if described != size:
        raise UnreadableFileError(
            f"{path.name} has {size} bytes where its header describes {described}",
            expected="a complete shard",
            action="run `ipadapter cache CONFIG`, which recomputes its entries",
        )
    try:
        sums = read_sums(header.get("__metadata__"))
    except ValueError as error:
        raise _not_as_written(path, str(error)) from error
    parts: dict[str, set[str]] = {}
    for name in entries:
        key, _, part = name.rpartition("/")
        parts.setdefault(key, set()).add(part)
    if len(set(map(frozenset, parts.values()))) > 1 or (sums is not None and sums.keys() != parts.keys()):
        raise _not_as_written(path, "other entries than were written")
    return list(entries)


def _not_as_written(path: Path, found: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path.name} is not as it was written ({found})",
        expected="a whole shard",
        action="run `ipadapter cache CONFIG`, which recomputes its entries",
    )


def _seal(path: Path) -> None:
    """Put the hash of the data in its place in the header, and everything on the disk."""
    digest = tensor_hash(path)
    with path.open("r+b") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        place = 8 + file.read(length).index(f'"{_HASH_PLACE}"'.encode()) + 1
        file.seek(place)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _read_recipe(folder: Path) -> Mapping[str, object]:
    try:
        recipe = json.loads((folder / _RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return recipe if isinstance(recipe, dict) else {}
