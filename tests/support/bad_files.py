"""Broken, misnamed and malicious files, each written into a folder; every function returns the file's path."""

import hashlib
import os
import pickle
import shlex
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ipadapter_core.file.seal import sealed

from .published import nested, random_tensors, tiny_adapter, write_bin, write_safetensors

SITE_DIMS = (32, 64, 64)
HASH_KEY = "modelspec.hash_sha256"
_LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header


def good_tensors() -> dict[str, Tensor]:
    """The intact tiny base adapter that every file here is a damaged form of."""
    return random_tensors(tiny_adapter("base", site_dims=SITE_DIMS))


def truncated_safetensors(folder: Path) -> Path:
    """Whole header, half of the data: a download that broke off."""
    path = write_safetensors(folder / "truncated.safetensors", good_tensors())
    content = path.read_bytes()
    data_start = _LENGTH_BYTES + _header_length(content)
    path.write_bytes(content[: (data_start + len(content)) // 2])
    return path


def truncated_header(folder: Path) -> Path:
    path = write_safetensors(folder / "truncated_header.safetensors", good_tensors())
    content = path.read_bytes()
    path.write_bytes(content[: _LENGTH_BYTES + _header_length(content) // 2])
    return path


def truncated_bin(folder: Path) -> Path:
    path = write_bin(folder / "truncated.bin", nested(good_tensors()))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def empty_safetensors(folder: Path) -> Path:
    return _write(folder / "empty.safetensors", b"")


def empty_bin(folder: Path) -> Path:
    return _write(folder / "empty.bin", b"")


def text_named_safetensors(folder: Path) -> Path:
    return _write(folder / "notes.safetensors", b"Remember to download the adapter and put it here.\n")


def zip_named_safetensors(folder: Path) -> Path:
    """What torch.save writes today: a zip archive."""
    return write_bin(folder / "zip.safetensors", nested(good_tensors()))


def pickle_named_safetensors(folder: Path) -> Path:
    """What torch.save wrote before version 1.6: bare pickles."""
    path = folder / "pickle.safetensors"
    torch.save(nested(good_tensors()), path, _use_new_zipfile_serialization=False)
    return path


def safetensors_named_bin(folder: Path) -> Path:
    return write_safetensors(folder / "safetensors.bin", good_tensors())


def enormous_header(folder: Path) -> Path:
    """A header length of 2**60: a reader that believes it asks for an exabyte."""
    return _write(folder / "enormous_header.safetensors", struct.pack("<Q", 2**60) + b'{"a":{}}')


def long_header(folder: Path) -> Path:
    """A header length of 200 MB, which memory would hold, in a file of 16 bytes."""
    return _write(folder / "long_header.safetensors", struct.pack("<Q", 200 * 1024**2) + b'{"a":{}}')


def bit_flipped_header(folder: Path) -> Path:
    """One flipped bit turns the header's first quotation mark into `#`: no JSON any more."""
    path = write_safetensors(folder / "bit_flipped_header.safetensors", good_tensors())
    content = bytearray(path.read_bytes())
    content[content.index(b'"', _LENGTH_BYTES)] ^= 1
    return _write(path, bytes(content))


def bit_flipped_data(folder: Path) -> Path:
    """One flipped bit in a weight; only the hash of the data that the metadata states can show it."""
    path = write_safetensors(folder / "bit_flipped_data.safetensors", good_tensors())
    digest = hashlib.sha256(_data(path.read_bytes())).hexdigest()
    write_safetensors(path, good_tensors(), {HASH_KEY: f"0x{digest}"})
    content = bytearray(path.read_bytes())
    assert hashlib.sha256(_data(bytes(content))).hexdigest() == digest
    content[-1] ^= 1
    return _write(path, bytes(content))


def bit_flipped_metadata(folder: Path) -> Path:
    """One flipped bit in what the file says of its encoder's layer; only the header's checksum can show it."""
    path = folder / "bit_flipped_metadata.safetensors"
    stated = {"ipadapter.spec": '{"layer": -2}'}
    write_safetensors(path, good_tensors(), sealed(good_tensors(), stated))
    return _write(path, path.read_bytes().replace(b": -2}", b": -3}"))


class CodeInPickle:
    """Unpickled without `weights_only=True`, it makes the marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {shlex.quote(str(self.marker))}",)


def code_marker(folder: Path) -> Path:
    """Exists if and only if the code in `code_in_bin` or `code_in_pickle` ran."""
    return folder / "code_ran.marker"


def code_in_bin(folder: Path) -> Path:
    """A whole adapter as torch.save writes it, with a trap beside its tensors."""
    path = folder / "code.bin"
    torch.save({**nested(good_tensors()), "extra": CodeInPickle(code_marker(folder))}, path)
    return path


def code_in_pickle(folder: Path) -> Path:
    """A bare pickle that is nothing but the trap."""
    return _write(folder / "code_only.bin", pickle.dumps(CodeInPickle(code_marker(folder)), protocol=2))


def weight_with_nan(folder: Path) -> Path:
    return _with_value(folder / "nan.safetensors", "image_proj.proj.weight", float("nan"))


def weight_with_infinity(folder: Path) -> Path:
    return _with_value(folder / "infinity.safetensors", "ip_adapter.3.to_k_ip.weight", float("inf"))


def without_image_proj(folder: Path) -> Path:
    tensors = {name: tensor for name, tensor in good_tensors().items() if not name.startswith("image_proj.")}
    return write_safetensors(folder / "without_image_proj.safetensors", tensors)


def without_ip_adapter(folder: Path) -> Path:
    """The well-known empty conversion of an accelerate state."""
    tensors = {name: tensor for name, tensor in good_tensors().items() if not name.startswith("ip_adapter.")}
    return write_safetensors(folder / "without_ip_adapter.safetensors", tensors)


def without_one_value(folder: Path) -> Path:
    tensors = good_tensors()
    del tensors["ip_adapter.3.to_v_ip.weight"]
    return write_safetensors(folder / "without_one_value.safetensors", tensors)


def gap_in_sites(folder: Path) -> Path:
    """Sites 1, 3, 7."""
    tensors = good_tensors()
    for part in ("to_k_ip", "to_v_ip"):
        tensors[f"ip_adapter.7.{part}.weight"] = tensors.pop(f"ip_adapter.5.{part}.weight")
    return write_safetensors(folder / "gap_in_sites.safetensors", tensors)


def wrong_norm_shape(folder: Path) -> Path:
    """norm.weight twice as wide as it should be: it still divides the rows of proj.weight."""
    tensors = good_tensors()
    tensors["image_proj.norm.weight"] = tensors["image_proj.norm.weight"].repeat(2)
    return write_safetensors(folder / "wrong_norm_shape.safetensors", tensors)


def html_page(folder: Path) -> Path:
    page = "<!DOCTYPE html>\n<html><head><title>401 Unauthorized</title></head>\n<body>Please log in.</body></html>\n"
    return _write(folder / "html_page.safetensors", page.encode())


def git_lfs_pointer(folder: Path) -> Path:
    digest = hashlib.sha256(b"adapter").hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 44642768\n"
    return _write(folder / "git_lfs_pointer.safetensors", pointer.encode())


BAD_FILES: dict[str, Callable[[Path], Path]] = {
    function.__name__: function
    for function in (
        truncated_safetensors,
        truncated_header,
        truncated_bin,
        empty_safetensors,
        empty_bin,
        text_named_safetensors,
        zip_named_safetensors,
        pickle_named_safetensors,
        safetensors_named_bin,
        enormous_header,
        long_header,
        bit_flipped_header,
        bit_flipped_data,
        bit_flipped_metadata,
        code_in_bin,
        code_in_pickle,
        weight_with_nan,
        weight_with_infinity,
        without_image_proj,
        without_ip_adapter,
        without_one_value,
        gap_in_sites,
        wrong_norm_shape,
        html_page,
        git_lfs_pointer,
    )
}


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _header_length(content: bytes) -> int:
    length: int = struct.unpack("<Q", content[:_LENGTH_BYTES])[0]
    return length


def _data(content: bytes) -> bytes:
    return content[_LENGTH_BYTES + _header_length(content) :]


def _with_value(path: Path, name: str, value: float) -> Path:
    tensors = good_tensors()
    tensors[name][0, 0] = value
    return write_safetensors(path, tensors)
