"""A checksum of all that an adapter file says, in its metadata, so that a changed bit is never trained on or exported."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ipadapter_core.errors import UnreadableFileError
from ipadapter_core.file.container import SAFETENSORS_SUFFIXES, read_tensors

SEAL = "ipadapter.seal"


class Digest(Protocol):
    """A checksum in the making, one of hashlib's."""

    def update(self, data: Any, /) -> None: ...


def sealed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata, with the checksum of it and of the tensors."""
    return {**metadata, SEAL: _sum(tensors, metadata)}


def check_seal(path: Path) -> None:
    """Read a file again. One of another program, or of an earlier version, has no seal.

    Raises:
        UnreadableFileError: it is not as it was written, or cannot be read.
    """
    if path.suffix not in SAFETENSORS_SUFFIXES:
        return
    file = read_tensors(path, verify_again=True)
    seal = file.metadata.get(SEAL)
    if seal is not None and seal != _sum(file.tensors, file.metadata):
        raise UnreadableFileError(
            f"{path}, which is not as it was written",
            expected="the adapter that was saved",
            action="take a copy of it, or export it again from a checkpoint of its run",
        )


def _sum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    stated = {name: text for name, text in metadata.items() if name != SEAL}
    digest = hashlib.sha256(json.dumps(stated, sort_keys=True).encode())
    add_tensors(digest, tensors)
    return digest.hexdigest()


def add_tensors(digest: Digest, tensors: Mapping[str, Tensor]) -> None:
    """Put names, types, shapes and values into a checksum, whatever order they come in."""
    for name, tensor in sorted(tensors.items()):
        digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
