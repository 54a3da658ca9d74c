"""What the header of a safetensors file may say, and whether it fits the file it stands in."""

import torch

from ..numbers import is_whole

HEADER_LIMIT = 100_000_000  # bytes; safetensors' own limit
MOST_TENSORS = 100_000
LONGEST_NAME = 512
MOST_AXES = 16
LARGEST_SIZE = 2**40  # of an axis, and of all but empty axes together
METADATA = "__metadata__"
HASH_KEY = "modelspec.hash_sha256"
# Of tensors that are computed with; what else safetensors knows is no adapter's, encoder's or state's.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def check_header(header: object) -> tuple[dict[str, dict[str, object]], int]:
    """Entries of a header by name, and the bytes of data it claims.

    Raises:
        ValueError: what cannot be the header of a safetensors file; says why.
    """
    if not isinstance(header, dict):
        raise ValueError("a header that is not a JSON object")
    if len(header) > MOST_TENSORS:
        raise ValueError(f"a header of {len(header)} tensors")
    metadata = header.get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"a header whose {METADATA} is not an object of texts")
    places = sorted(_place(name, entry) for name, entry in header.items() if name != METADATA)
    end = 0
    for start, stop, name in places:
        if start != end:
            raise ValueError(f"a header whose data_offsets of {name} begin at {start}, not {end}")
        end = stop
    return header, end


def check_name(name: object) -> str:
    """The name of a tensor.

    Raises:
        ValueError: no text, too long, or with characters that no name has.
    """
    if not isinstance(name, str):
        raise ValueError(f"a tensor whose name is a {type(name).__name__}")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a tensor whose name has {len(name)} characters")
    if not name.isprintable():
        raise ValueError(f"a tensor with the name {name[:60]!a}")
    return name


def _place(name: str, entry: object) -> tuple[int, int, str]:
    check_name(name)
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise ValueError(f"a header whose {name} has no dtype")
    shape, dtype = entry.get("shape"), DTYPES.get(entry["dtype"])
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(map(_is_size, shape)):
        raise ValueError(f"a header whose {name} has the shape {_shown(shape)}")
    start, stop = _pair(name, entry.get("data_offsets"))
    volume, count = 1, 1
    for size in shape:
        volume, count = volume * (size or 1), count * size
    if volume > LARGEST_SIZE or (dtype is not None and stop - start != count * dtype.itemsize):
        raise ValueError(f"a header whose {name} of shape {_shown(shape)} has {stop - start} bytes of data")
    return start, stop, name


def _pair(name: str, offsets: object) -> tuple[int, int]:
    if isinstance(offsets, list) and len(offsets) == 2 and all(map(_is_offset, offsets)):
        start, stop = offsets
        if start <= stop:
            return start, stop
    raise ValueError(f"a header whose {name} has the data_offsets {_shown(offsets)}")


def _is_size(value: object) -> bool:
    return is_whole(value) and 0 <= value <= LARGEST_SIZE


def _is_offset(value: object) -> bool:
    return is_whole(value) and 0 <= value < 2**63


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} …"
