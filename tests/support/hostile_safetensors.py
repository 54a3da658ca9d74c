"""Mutated safetensors files: header, names, shapes, numbers, metadata, data and bytes."""

import copy
import json
import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from .hostile import NAMES, VALUES, Raw, changed_bytes, changed_json, early, json_text

_DTYPES = (
    "F8_E4M3",
    "F8_E5M2",
    "F8_E8M0",
    "F4",
    "F6_E2M3",
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "U8",
    "BOOL",
    "C64",
    "U16",
)
_SPEC = {
    "projection": "linear",
    "feature": "image_embeds",
    "negative": "zero_features",
    "layer": -2,
    "backbone": "UNet",
    "base": "SD1.5",
    "encoder": {"name": "e", "image_size": 224, "crop": "center"},
    "resampler": {"head_dim": 8},
    "face": {"has_shortcut": True},
}
_PREPROCESS = {"encoder_kind": "CLIP", "crop": "center", "size": 224, "mean": [0.5] * 3, "std": [0.5] * 3}


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    return save(dict(tensors), dict(metadata or {}))


def write_mutated(draw: random.Random, path: Path, content: bytes) -> str:
    """Write a damaged form of a safetensors file; returns what was done to it."""
    name = draw.choice(list(MUTATIONS))
    path.write_bytes(MUTATIONS[name](draw, content))
    return name


def taken_apart(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(header: object, data: bytes, length: int | None = None) -> bytes:
    text = json_text(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def rebuilt(header: Mapping[str, Any], data: bytes) -> bytes:
    """Offsets made right for tensors that were left out, renamed or doubled."""
    new, parts, end = {}, [], 0
    for name, entry in header.items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            parts.append(data[start:stop])
            entry = {**entry, "data_offsets": [end, end + stop - start]}
            end += stop - start
        new[name] = entry
    return put_together(new, b"".join(parts))


def _header_values(draw: random.Random, content: bytes) -> bytes:
    header, data = taken_apart(content)
    return put_together(changed_json(draw, header), data)


def _entry_values(draw: random.Random, content: bytes) -> bytes:
    header, data = taken_apart(content)
    entry = header[_tensor(draw, header)]
    entry[draw.choice(("shape", "dtype", "data_offsets"))] = draw.choice(VALUES)
    return put_together(header, data)


def _offsets(draw: random.Random, content: bytes) -> bytes:
    header, data = taken_apart(content)
    entry = header[_tensor(draw, header)]
    start, stop = entry["data_offsets"]
    entry["data_offsets"] = draw.choice(
        (
            *([stop, start], [start, stop + 2], [start - 2, stop], [start + 2, stop + 2], [start, start], [0, stop]),
            *(
                [start, 2**62],
                [2**62, 2**62 + stop - start],
                [-stop, -start],
                [start, stop, stop],
                [start, len(data) * 9],
            ),
        )
    )
    return put_together(header, data)


def _dtypes(draw: random.Random, content: bytes) -> bytes:
    """Other dtypes; half of the time with a shape that fits the bytes that are there."""
    header, data = taken_apart(content)
    dtype, fits = draw.choice(_DTYPES), draw.random() < 0.5
    size = {"F64": 8, "I64": 8, "C64": 8, "F32": 4, "F16": 2, "BF16": 2, "U16": 2, "F4": 0.5, "F6_E2M3": 0.75}.get(
        dtype, 1
    )
    for name in [_tensor(draw, header)] if draw.random() < 0.5 else [n for n in header if n != "__metadata__"]:
        entry = header[name]
        start, stop = entry["data_offsets"]
        if fits and entry["shape"]:
            rows = entry["shape"][:-1]
            count = 1
            for row in rows:
                count *= row
            entry["shape"] = [*rows, int((stop - start) / size) // max(count, 1)]
        entry["dtype"] = dtype
    return put_together(header, data)


def _names(draw: random.Random, content: bytes) -> bytes:
    header, data = taken_apart(content)
    for _ in range(draw.choice((1, 1, 3))):
        old = _tensor(draw, header)
        change = draw.randrange(5 if len(header) > 2 else 2)
        if change == 0:
            del header[old]
        elif change == 1:
            header[draw.choice(NAMES)] = header.pop(old)
        elif change == 2:
            other = _tensor(draw, header)
            header[old], header[other] = header[other], header[old]
        elif change == 3:
            header[old.replace("ip_adapter.", draw.choice(("adapter_modules.", "module.ip_adapter.", "unet.")))] = (
                header.pop(old)
            )
        else:
            header[f"{old}#" if draw.random() < 0.3 else draw.choice(NAMES)] = copy.deepcopy(header[old])
        if set(header) <= {"__metadata__"}:
            break
    return rebuilt(header, data)


def _shapes(draw: random.Random, content: bytes) -> bytes:
    """Shapes of other ranks, with as many numbers."""
    header, data = taken_apart(content)
    for _ in range(draw.choice((1, 1, 3))):
        entry = header[_tensor(draw, header)]
        shape, count = entry["shape"], 1
        for size in shape:
            count *= size
        entry["shape"] = draw.choice(
            ([count], [1, count], [count, 1], shape[::-1], [1, *shape], [*shape, 1], [1] * 8 + shape, [2, count // 2])
        )
    return put_together(header, data)


def _empty_tensors(draw: random.Random, content: bytes) -> bytes:
    """Tensors without a number, of whatever other sizes, or scalars."""
    header, data = taken_apart(content)
    for _ in range(draw.choice((1, 2))):
        entry = header[_tensor(draw, header)]
        start, _ = entry["data_offsets"]
        entry["shape"] = draw.choice(([0], [0, 16], [2**62, 0], [0, 2**39], [0] * 16, [2**40, 2**40, 0]))
        entry["data_offsets"] = [start, start]
    return rebuilt(header, data)


def _spec(draw: random.Random, content: bytes) -> bytes:
    header, data = taken_apart(content)
    key = draw.choice(
        ("ipadapter.spec", "ipadapter.spec", "ipadapter.preprocess", "ipadapter.training", "ipadapter.portability")
    )
    text: object = json_text(changed_json(draw, _PREPROCESS if key.endswith("preprocess") else _SPEC))
    if draw.random() < 0.2:
        text = draw.choice((*VALUES, *NAMES))
    if isinstance(text, Raw):
        text = str(text)
    header["__metadata__"] = {**header.get("__metadata__", {}), key: text}
    if draw.random() < 0.1:
        header["__metadata__"][draw.choice(("modelspec.hash_sha256", "modelspec.title"))] = draw.choice(
            (*VALUES, *NAMES)
        )
    return put_together(header, data)


def _lengths(draw: random.Random, content: bytes) -> bytes:
    header, data = taken_apart(content)
    whole = len(content) - len(data) - 8
    lengths = (0, 1, whole - 1, whole + 1, whole + len(data), len(content), 2**31, 2**63, 2**64 - 1, 100_000_001)
    return put_together(header, data, draw.choice(lengths))


def _texts(draw: random.Random, content: bytes) -> bytes:
    _, data = taken_apart(content)
    return put_together(draw.choice(VALUES), data if draw.random() < 0.5 else b"")


def _tensor(draw: random.Random, header: Mapping[str, Any]) -> str:
    return draw.choice([name for name in header if name != "__metadata__"] or list(header))


MUTATIONS: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "header values": _header_values,
    "entry values": _entry_values,
    "offsets": _offsets,
    "dtypes": _dtypes,
    "names": _names,
    "shapes": _shapes,
    "empty tensors": _empty_tensors,
    "metadata": _spec,
    "header lengths": _lengths,
    "header texts": _texts,
    "bytes": changed_bytes,
    "early bytes": early,
}
