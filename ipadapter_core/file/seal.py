"""A checksum of what the header of an adapter file says; the header has one of the data behind it.

Metadata alone say of an adapter how pictures are cut, which layer is read and what no image is: a changed bit there
draws other pictures, and nothing else would show it. Looking costs nothing, so every reader does.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..errors import UnreadableFileError
from .header import HASH_KEY, METADATA
from .layout import data_hash, described

SEAL = "ipadapter.header_sha256"


def sealed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata, with the hash of the tensors' data and the checksum of all that the header then says."""
    stated = {**metadata, HASH_KEY: metadata.get(HASH_KEY) or f"0x{data_hash(tensors)}"}
    return {**stated, SEAL: _sum(stated, {name: described(tensor) for name, tensor in tensors.items()})}


def check_seal(path: Path, entries: Mapping[str, Mapping[str, object]]) -> None:
    """Compare a header with its checksum. One of another program, or of an earlier version, has none.

    Raises:
        UnreadableFileError: it does not say what was written.
    """
    metadata = entries.get(METADATA, {})
    seal = metadata.get(SEAL)
    tensors = {
        name: {"dtype": entry["dtype"], "shape": entry["shape"]} for name, entry in entries.items() if name != METADATA
    }
    if seal is not None and seal != _sum(metadata, tensors):
        raise UnreadableFileError(
            f"{path.name}, whose header is not as it was written (its {SEAL} does not fit)",
            expected="the adapter that was saved",
            action="take another copy of it, or export it again; if you changed its metadata on purpose, remove the "
            f"entry {SEAL}",
        )


def _sum(metadata: Mapping[str, object], tensors: Mapping[str, object]) -> str:
    stated = {name: text for name, text in metadata.items() if name != SEAL}
    return hashlib.sha256(json.dumps([stated, tensors], sort_keys=True).encode()).hexdigest()
