"""How a safetensors file is laid out: equal contents are equal bytes, whoever writes them and however often.

safetensors' own writer puts metadata in another order each time.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .header import DTYPES, METADATA

_ALIGNMENT = 8  # bytes; readers map tensors where they lie
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[Any]:
    """The bytes of a file, one after the other."""
    header: dict[str, object] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name, tensor in _in_order(tensors):
        start, end = end, end + tensor.nbytes
        header[name] = {**described(tensor), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    yield struct.pack("<Q", len(text))
    yield text
    yield from _data(tensors)


def described(tensor: Tensor) -> dict[str, object]:
    """What a header says of a tensor but for its place."""
    return {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape)}


def data_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the data of a file that `pieces` gives, as `tensor_hash` finds it there."""
    digest = hashlib.sha256()
    for piece in _data(tensors):
        digest.update(piece)
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> Any:
    """A tensor's numbers as they stand in a file, without a copy where it lies so on the host."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _data(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    return (bytes_of(tensor) for _, tensor in _in_order(tensors))


def _in_order(tensors: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    """Wide types first, so that each begins where its type may begin; then by name."""
    return sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, _NAMES[item[1].dtype], item[0]))
