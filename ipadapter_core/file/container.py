"""Reading and writing files of tensors: `.safetensors` (memory-mapped) and `.bin` (`weights_only=True`), no code runs.

Every reader takes what the file should be, such as "adapter" or "image encoder", for its messages.
"""

import hashlib
import logging
import os
import pickle
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import UnreadableFileError
from .faults import a_file, damaged, misnamed, unreadable
from .header import DTYPES, HASH_KEY, HEADER_LIMIT, MOST_TENSORS, check_header, check_name
from .holes import MOST_HOLES, bytes_in_holes
from .json_text import parse_json
from .layout import pieces
from .pickle_bounds import ForeignPickleError, check_pickle
from .remote import where_remote
from .seal import check_seal
from .strangers import strangers

logger = logging.getLogger(__name__)

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
ADAPTER_SUFFIXES = (*SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES)
ADAPTER = "adapter"
_HEADER_LENGTH_BYTES = 8
_ZIP_START = b"PK"
_LARGEST_JSON = HEADER_LIMIT
_PICKLE_STARTS = (b"\x80", _ZIP_START)  # torch's older format, and its zip
_DTYPES = frozenset(DTYPES.values())
_MOST_LEVELS = 32  # of dictionaries in a pickle
_MOST_SHARING = 4  # times that the tensors of a pickle may be larger than its file; tied weights stand in it once


FileIdentity = tuple[str, int, int]  # resolved path, size, time of last change


@dataclass(frozen=True)
class TensorFile:
    """Tensors under flat names (`image_proj.proj.weight`) and the file's metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_tensors(path: Path, kind: str = ADAPTER, *, can_map: bool = True, verify_again: bool = False) -> TensorFile:
    """Read a file of tensors without running code in it.

    Args:
        kind: what the file should be, for messages.
        can_map: leave the tensors in the file, mapped into memory, where its form allows; else they are copied.
        verify_again: hash the data even if this very file was found right before.

    Raises:
        UnreadableFileError: missing, empty, truncated, damaged, misnamed, or a pickle that wants to run code.
    """
    start = _check_content(path, kind)
    if path.suffix in SAFETENSORS_SUFFIXES:
        return _read_safetensors(path, kind, can_map and _is_here(path, kind), verify_again)
    return TensorFile(_flat_tensors(_read_pickle(path, kind, start, can_map), path, kind), {})


def read_header(path: Path, kind: str = ADAPTER, *, is_whole: bool = False) -> dict[str, dict[str, object]]:
    """Names, dtypes and shapes of a safetensors file, from its header alone.

    Args:
        is_whole: the data must be there as well, as far as the file's size tells.

    Raises:
        UnreadableFileError: not a safetensors file, or its header is damaged or not as it was written.
    """
    size = file_status(path, kind).st_size
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_LENGTH_BYTES)
            length = struct.unpack("<Q", start)[0] if len(start) == _HEADER_LENGTH_BYTES else 0
            is_possible = 2 <= length <= min(HEADER_LIMIT, size - _HEADER_LENGTH_BYTES)
            text = file.read(length) if is_possible else b""
    except OSError as error:
        raise unreadable(path, kind, error) from error
    if not is_possible:
        _check_content(path, kind)  # knows many things that a file may be instead
        raise damaged(path, kind, f"a header of {length} bytes in a file of {size} bytes")
    try:
        entries, held = check_header(parse_json(text))
    except ValueError as error:
        what = str(error) if str(error).startswith("a header") else f"a header that is not JSON ({error})"
        raise damaged(path, kind, what) from error
    missing = _HEADER_LENGTH_BYTES + length + held - size
    if is_whole and missing > 0:
        raise damaged(path, kind, f"a broken safetensors file (its last {missing} bytes are missing)")
    check_seal(path, entries)
    return entries


def file_status(path: Path, kind: str = ADAPTER) -> os.stat_result:
    """Size and time of an ordinary file, links followed.

    Raises:
        UnreadableFileError: there is none at this path; says why, and what is there instead.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise unreadable(path, kind, error) from error
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise UnreadableFileError(
            f"{path} is {what}", expected=f"{a_file(kind)}", action="choose another file or put the right one there"
        )
    return status


def file_identity(path: Path, kind: str = ADAPTER) -> FileIdentity:
    """Changes when the file is replaced. Errors as `file_status`."""
    status = file_status(path, kind)
    return str(path.resolve()), status.st_size, status.st_mtime_ns


def read_json(path: Path, kind: str) -> object:
    """What a JSON file holds.

    Raises:
        UnreadableFileError: it cannot be read, or is no JSON.
    """
    size = file_status(path, kind).st_size
    if size > _LARGEST_JSON:
        raise damaged(path, kind, f"a text of {size} bytes")
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, kind, error) from error
    except ValueError as error:
        raise damaged(path, kind, f"text that is not JSON ({error})") from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors under their flat names, equal ones as equal bytes; the inverse of `read_tensors` for safetensors."""
    part = path.with_name(f"{path.name}.writing")  # the tensors may be mapped from what lies at this path
    try:
        part.unlink(missing_ok=True)
        with part.open("xb") as file:  # which follows no link
            file.writelines(pieces(tensors, metadata))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name and give it its own when it is complete: nobody meets half of it."""
    part = path.with_name(f"{path.name}.part")
    write(part)
    publish(part, path)


def publish(finished: Path, path: Path) -> None:
    """Give a file that was written aside its name, once all of it is on the disk."""
    sync(finished)
    os.replace(finished, path)


def sync(*paths: Path) -> None:
    """Put files, and what folders say of theirs, on the disk; Windows neither offers nor needs it."""
    if os.name == "nt":
        return
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _start_of(path: Path, kind: str) -> bytes:
    """The first bytes of a file, unless they tell that it is none of tensors."""
    file_status(path, kind)
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise unreadable(path, kind, error) from error
    if not start:
        raise damaged(path, kind, "an empty file")
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise damaged(path, kind, "a web page, probably an error page saved in place of the file")
    if text.startswith(b"version https://git-lfs"):
        raise damaged(path, kind, "a git-lfs pointer, not the file it points to")
    check_on_disk(path, kind)
    return start


def check_on_disk(path: Path, kind: str = ADAPTER) -> None:
    """Make sure that what a file claims to hold is there: a hole is read as zeros, of any length.

    Raises:
        UnreadableFileError: large parts of it are not on the disk, as of a download that goes on or broke off.
    """
    try:
        missing = bytes_in_holes(path)
    except OSError as error:
        raise unreadable(path, kind, error) from error
    if missing > MOST_HOLES:
        raise damaged(path, kind, f"{missing} of its bytes are holes, not on the disk (an unfinished download?)")


def _is_here(path: Path, kind: str) -> bool:
    where = where_remote(path, file_status(path, kind))
    if where is not None:
        logger.info("%s lies on %s: it is copied into memory, not mapped.", path, where)
    return where is None


def _check_content(path: Path, kind: str) -> bytes:
    """As `_start_of`, of a file whose suffix says what it is."""
    start = _start_of(path, kind)
    has_header = start[_HEADER_LENGTH_BYTES:].startswith(b"{")
    if path.suffix in SAFETENSORS_SUFFIXES and start.startswith(_PICKLE_STARTS) and not has_header:
        raise misnamed(path, kind, "a PyTorch pickle", path.with_suffix(".bin"))
    if path.suffix in PICKLE_SUFFIXES and has_header:
        raise misnamed(path, kind, "safetensors", path.with_suffix(".safetensors"))
    if path.suffix not in ADAPTER_SUFFIXES:
        raise UnreadableFileError(
            f"{path.name} ends in {path.suffix or 'nothing'}",
            expected=f"one of {', '.join(ADAPTER_SUFFIXES)}",
            action=f"choose {a_file(kind)}",
        )
    return start


def _read_safetensors(path: Path, kind: str, can_map: bool, verify_again: bool) -> TensorFile:
    entries = read_header(path, kind)
    identity = file_identity(path, kind)  # before it is read: what replaces it meanwhile is another file
    with strangers(lambda why: damaged(path, kind, f"a broken safetensors file ({why})")):
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            names = tuple(file.keys())
            tensors = {name: file.get_tensor(name) for name in names} if can_map else _copied(path, entries, names)
        stated = metadata.get(HASH_KEY)
        found = None if stated is None else tensor_hash(path) if verify_again else _known_hash(identity)
    if stated is not None and stated.removeprefix("0x").lower() != found:
        raise damaged(path, kind, f"tensor data whose SHA-256 is not the one its metadata states ({stated[:80]})")
    tensors = {name: _plain(name, tensor, path, kind) for name, tensor in tensors.items()}
    if file_identity(path, kind) != identity:
        raise damaged(path, kind, "a file that changed while it was read")
    return TensorFile(tensors, metadata)


def _copied(path: Path, entries: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors read piece by piece: what is mapped first and copied then is in memory twice."""
    tensors: dict[str, Tensor] = {}
    with path.open("rb") as file:
        start = _HEADER_LENGTH_BYTES + struct.unpack("<Q", file.read(_HEADER_LENGTH_BYTES))[0]
        for name in names:
            entry = entries[name]
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"{name} of dtype {entry['dtype']}")
            tensors[name] = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
            room = tensors[name].flatten().view(torch.uint8).numpy().data
            file.seek(start + entry["data_offsets"][0])
            if file.readinto(room) != len(room):
                raise ValueError(f"{name} ends early")
    return tensors


@lru_cache(maxsize=4096)
def _known_hash(identity: FileIdentity) -> str:
    return tensor_hash(Path(identity[0]))


def tensor_hash(path: Path) -> str:
    """SHA-256 of a safetensors file's data after the header (`modelspec.hash_sha256` of the model-spec standard)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(_HEADER_LENGTH_BYTES))[0]
        file.seek(_HEADER_LENGTH_BYTES + length)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_pickle(path: Path, kind: str = ADAPTER, *, can_map: bool = True) -> object:
    """What a pickle of tensors holds, without running code in it; zipped ones are memory-mapped if they may be.

    Raises:
        UnreadableFileError: damaged, or it wants to run code.
    """
    return _read_pickle(path, kind, _start_of(path, kind), can_map)


def _read_pickle(path: Path, kind: str, start: bytes, can_map: bool) -> object:
    is_zip = _is_zipped(path, kind, start)
    can_map = is_zip and can_map and _is_here(path, kind)
    with _pickles(path, kind):
        check_pickle(path, is_zip=is_zip)
        content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=can_map)
    return _plain("its top", content, path, kind) if isinstance(content, Tensor) else content


def check_file(path: Path, kind: str) -> None:
    """Make sure that another program may read a file of tensors: it claims no more than is there, in bounded time.

    Raises:
        UnreadableFileError: it does not, or as `read_tensors` as far as nothing is read.
    """
    start = _check_content(path, kind)
    if path.suffix in SAFETENSORS_SUFFIXES:
        read_header(path, kind, is_whole=True)
        return
    is_zip = _is_zipped(path, kind, start)
    with _pickles(path, kind):
        check_pickle(path, is_zip=is_zip)


def _is_zipped(path: Path, kind: str, start: bytes) -> bool:
    """Whether a pickle that begins so is of torch's present form; its older one cannot be memory-mapped."""
    if not start.startswith(_PICKLE_STARTS):
        raise damaged(path, kind, "a broken PyTorch file (it begins as none does)")
    return start.startswith(_ZIP_START)


@contextmanager
def _pickles(path: Path, kind: str) -> Iterator[None]:
    with strangers(lambda why: damaged(path, kind, f"a broken PyTorch file ({why})")):
        try:
            yield
        except (ForeignPickleError, pickle.UnpicklingError) as error:
            text = str(error).lower()
            if isinstance(error, ForeignPickleError) or "weights_only" in text or "unsupported" in text:
                raise UnreadableFileError(
                    f"{path.name} is a pickle that asks to run code or to build foreign objects, or is damaged",
                    expected=f"{a_file(kind)} of plain tensors",
                    action="do not use this file; get it as safetensors from a source you trust",
                ) from error
            raise


def _flat_tensors(content: object, path: Path, kind: str) -> dict[str, Tensor]:
    if not isinstance(content, dict):
        raise UnreadableFileError(
            f"{path.name} holds a {type(content).__name__} at its top",
            expected=f"{a_file(kind)}: a dictionary of tensors",
            action=f"choose {a_file(kind)}",
        )
    flat: dict[str, Tensor] = {}
    room = [MOST_TENSORS]  # dictionaries may hold each other many times over
    for name, value in _entries(content, room):
        try:
            flat[check_name(name)] = _plain(name, value, path, kind)
        except ValueError as error:
            if isinstance(error, UnreadableFileError):
                raise
            raise damaged(path, kind, str(error)) from error
    if not room[0]:
        raise damaged(path, kind, f"more than {MOST_TENSORS} entries, or dictionaries that hold themselves")
    total, size = sum(tensor.nbytes for tensor in flat.values()), file_status(path, kind).st_size
    if total > _MOST_SHARING * size:
        raise damaged(path, kind, f"{total} bytes of tensors in a file of {size} bytes")
    return flat


def _entries(
    content: dict[object, object], room: list[int], prefix: str = "", level: int = 0
) -> Iterator[tuple[str, Tensor]]:
    # the methods of the classes: a pickle may give its objects attributes of these names
    for key, value in dict.items(content):
        if room[0] == 0:
            return
        room[0] = room[0] - 1 if level < _MOST_LEVELS else 0
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from _entries(value, room, f"{prefix}{key}.", level + 1)


def _plain(name: str, tensor: Tensor, path: Path, kind: str) -> Tensor:
    """The tensor alone, if it is one that the file holds in full, of numbers that are computed with."""
    is_plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    if not is_plain or tensor.dtype not in _DTYPES:
        what = f"{name} is a tensor of {tensor.dtype}, {tensor.layout} on {tensor.device}"
    elif tensor.nbytes > tensor.untyped_storage().nbytes():
        what = f"{name} of shape {list(tensor.shape)} has {tensor.untyped_storage().nbytes()} bytes of data"
    else:
        return Tensor.detach(tensor)
    raise damaged(path, kind, what)
