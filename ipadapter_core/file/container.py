"""Reading and writing adapter files: `.safetensors` (memory-mapped) and `.bin` (`weights_only=True`), no code runs."""

import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UnreadableFileError

HASH_KEY = "modelspec.hash_sha256"
HEADER_LIMIT = 100_000_000  # bytes; safetensors' own limit
SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
ADAPTER_SUFFIXES = (*SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES)
_HEADER_LENGTH_BYTES = 8
_ZIP_START = b"PK"
_PICKLE_STARTS = (b"\x80", _ZIP_START)  # torch's older format, and its zip
# A damaged pickle fails wherever its opcodes lead.
_BROKEN_PICKLE = (
    RuntimeError,
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


@dataclass(frozen=True)
class TensorFile:
    """Tensors under flat names (`image_proj.proj.weight`) and the file's metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_tensors(path: Path) -> TensorFile:
    """Read an adapter file without running code in it and, for safetensors, without copying its tensors.

    Raises:
        UnreadableFileError: missing, empty, truncated, damaged, misnamed, or a pickle that wants to run code.
    """
    _check_content(path)
    if path.suffix in SAFETENSORS_SUFFIXES:
        return _read_safetensors(path)
    return TensorFile(_flatten(read_pickle(path), path), {})


def read_header(path: Path) -> dict[str, dict[str, object]]:
    """Names, dtypes and shapes of a safetensors file, from its header alone.

    Raises:
        UnreadableFileError: not a safetensors file, or its header is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_HEADER_LENGTH_BYTES)
        length = struct.unpack("<Q", start)[0] if len(start) == _HEADER_LENGTH_BYTES else 0
        if not 2 <= length <= min(HEADER_LIMIT, size - _HEADER_LENGTH_BYTES):
            raise _damaged(path, f"a header of {length} bytes in a file of {size} bytes")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError) as error:
            raise _damaged(path, f"a header that is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "a header that is not a JSON object")
    return {name: entry for name, entry in header.items() if isinstance(entry, dict)}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors under their flat names; the inverse of `read_tensors` for safetensors."""
    path.touch()
    mode = path.stat().st_mode  # what any new file gets; safetensors writes for its owner only
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=dict(metadata))
    path.chmod(mode)


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


def _check_content(path: Path) -> None:
    if not path.is_file():
        raise UnreadableFileError(
            f"no file at {path}", expected="an adapter file", action="choose another file or put this one back"
        )
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise _damaged(path, "an empty file")
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise _damaged(path, "a web page, probably an error page saved in place of the file")
    if text.startswith(b"version https://git-lfs"):
        raise _damaged(path, "a git-lfs pointer, not the file it points to")
    has_header = start[_HEADER_LENGTH_BYTES:].startswith(b"{")
    if path.suffix in SAFETENSORS_SUFFIXES and start.startswith(_PICKLE_STARTS) and not has_header:
        raise _misnamed(path, "a PyTorch pickle", path.with_suffix(".bin"))
    if path.suffix in PICKLE_SUFFIXES and has_header:
        raise _misnamed(path, "safetensors", path.with_suffix(".safetensors"))
    if path.suffix not in ADAPTER_SUFFIXES:
        raise UnreadableFileError(
            f"{path.name} ends in {path.suffix or 'nothing'}",
            expected=f"one of {', '.join(ADAPTER_SUFFIXES)}",
            action="choose the adapter's weight file",
        )


def _read_safetensors(path: Path) -> TensorFile:
    read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise _damaged(path, f"a broken safetensors file ({error})") from error
    stated = metadata.get(HASH_KEY)
    if stated is not None and stated.removeprefix("0x").lower() != tensor_hash(path):
        raise _damaged(path, f"tensor data whose SHA-256 is not the one its metadata states ({stated})")
    return TensorFile(tensors, metadata)


def tensor_hash(path: Path) -> str:
    """SHA-256 of a safetensors file's data after the header (`modelspec.hash_sha256` of the model-spec standard)."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(_HEADER_LENGTH_BYTES))[0]
        file.seek(_HEADER_LENGTH_BYTES + length)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_pickle(path: Path) -> object:
    """What a pickle of tensors holds, without running code in it; zipped ones are memory-mapped.

    Raises:
        UnreadableFileError: damaged, or it wants to run code.
    """
    with path.open("rb") as file:
        can_map = file.read(len(_ZIP_START)) == _ZIP_START  # torch's older format cannot be memory-mapped
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=can_map)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise UnreadableFileError(
                f"{path.name} is a pickle that asks to run code or to build foreign objects, or is damaged",
                expected="plain tensors",
                action="do not use this file; get the adapter as safetensors from a source you trust",
            ) from error
        raise _damaged(path, f"a broken pickle ({error})") from error
    except _BROKEN_PICKLE as error:
        raise _damaged(path, f"a broken PyTorch file ({error})") from error


def _flatten(content: object, path: Path, prefix: str = "") -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise UnreadableFileError(
            f"{path.name} holds a {type(content).__name__} at {prefix or 'its top'}",
            expected="a dictionary of tensors",
            action="choose the adapter's weight file",
        )
    flat: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            flat[f"{prefix}{name}"] = value
        elif isinstance(value, Mapping):
            flat.update(_flatten(value, path, f"{prefix}{name}."))
    return flat


def _damaged(path: Path, what: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path.name} is no usable adapter file: {what}",
        expected="a complete adapter file",
        action="download or export it again and compare its size with the source",
    )


def _misnamed(path: Path, what: str, better: Path) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path.name} is {what} by its content",
        expected=f"a file that is what its suffix {path.suffix} says",
        action=f"rename it to {better.name} if you trust its source",
    )
