"""Mutated PyTorch files: opcodes, objects, archives and bytes."""

import collections
import io
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .hostile import NAMES, VALUES, changed_bytes, early

_GLOBALS = (
    *("os system", "builtins eval", "builtins bytearray", "builtins complex", "builtins set", "builtins getattr"),
    *("collections OrderedDict", "collections Counter", "_codecs encode", "torch FloatTensor", "torch Tensor"),
    *(
        "torch FloatStorage",
        "torch UntypedStorage",
        "torch Size",
        "torch device",
        "torch float16",
        "torch per_tensor_affine",
    ),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch._utils _rebuild_qtensor"),
    *("torch._utils _rebuild_meta_tensor_no_storage", "torch._utils _rebuild_sparse_tensor"),
    *("torch._tensor _rebuild_from_type_v2", "torch.nn.parameter Parameter", "numpy dtype", "x" * 5000 + " y", "a\0 b"),
)
_PLAIN = (
    b"N",
    b"\x88",
    b"\x89",
    b")",
    b"]",
    b"}",
    b"\x8f",
    b"K\x03",
    b"M\x00\x01",
    b"J\xff\xff\xff\xff",
    b"G\x7f\xf0" + b"\0" * 6,
)
_CODES = (
    b"(",
    b"t",
    b"\x85",
    b"\x86",
    b"\x87",
    b"R",
    b"\x81",
    b"b",
    b"a",
    b"e",
    b"s",
    b"u",
    b"Q",
    b".",
    b"0",
    b"2",
    b"i",
    b"c",
)


def zip_bytes(content: object) -> bytes:
    return _saved(content, new=True)


def legacy_bytes(content: object) -> bytes:
    return _saved(content, new=False)


def _saved(content: object, *, new: bool) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(content, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def write_mutated(draw: random.Random, path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a damaged form of a PyTorch file; returns what was done to it."""
    name = draw.choice(list(MUTATIONS))
    path.write_bytes(MUTATIONS[name](draw, dict(tensors)))
    return name


def with_index(index: bytes, tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """An archive as torch.save makes it, with another `data.pkl`."""
    return zipped([(name, index if name.endswith("/data.pkl") else part) for name, part in members_of(tensors or {})])


def members_of(tensors: Mapping[str, Tensor]) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(zip_bytes(tensors))) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def zipped(members: list[tuple[str, bytes]], kind: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", kind) as archive:
        warnings.simplefilter("ignore")  # names that stand there twice
        for name, part in members:
            archive.writestr(name, part)
    return file.getvalue()


def laughs(depth: int = 40) -> bytes:
    """Tuples of tuples, each twice in the next, as a name in a dictionary: to hash it takes 2 ** depth steps."""
    doubled = b"".join(b"q" + bytes((n,)) + b"h" + bytes((n,)) + b"\x86" for n in range(depth))
    return b"\x80\x02}K\x01" + doubled + b"K\x01s."


def deep(opening: bytes, closing: bytes, depth: int) -> bytes:
    return b"\x80\x02" + opening * depth + closing * depth + b"."


def deep_dicts(depth: int) -> bytes:
    return b"\x80\x02" + b"}X\x01\0\0\0a" * depth + b"}" + b"s" * depth + b"."


def shared_dicts(depth: int) -> bytes:
    """Each dictionary holds the one before twice."""
    steps = b"".join(
        b"}X\x01\0\0\0ah" + bytes((n,)) + b"sX\x01\0\0\0bh" + bytes((n,)) + b"sq" + bytes((n + 1,))
        for n in range(depth)
    )
    return b"\x80\x02}q\0" + steps + b"."


def called(name: str, argument: bytes) -> bytes:
    module, _, function = name.partition(" ")
    return b"\x80\x02}X\x01\0\0\0ac" + f"{module}\n{function}\n".encode() + argument + b"Rs."


def long_number(number: int) -> bytes:
    size = number.bit_length() // 8 + 1
    return b"\x8a" + bytes((size,)) + number.to_bytes(size, "little", signed=True)


def shared(count: int, tensor: Tensor | None = None) -> dict[str, Tensor]:
    """Many views of one tensor: the file holds it once."""
    one = torch.zeros(1000) if tensor is None else tensor
    return {f"t{number}": one.view(one.shape) for number in range(count)}


def lying_storage(numel: int, tensors: Mapping[str, Tensor]) -> bytes:
    """An archive in which a stretch of data is said to be longer than it is, and its tensor as long as is said."""
    real = dict(members_of(tensors))
    index = next(part for name, part in real.items() if name.endswith("/data.pkl"))
    size = next(iter(tensors.values())).numel()
    old = b"K" + bytes((size,)) if size < 256 else b"M" + struct.pack("<H", size)
    return with_index(index.replace(old, long_number(numel)), tensors)


def _bombs(draw: random.Random, tensors: dict[str, Tensor]) -> bytes:
    depth = draw.choice((10, 30, 100, 200))
    index = draw.choice(
        (
            laughs(min(depth, 100)),
            deep(b"]", b"a", draw.choice((500, 10_000, 100_000))),
            deep(b")", b"\x85", draw.choice((500, 10_000, 100_000))),
            deep(b"(", b"t", draw.choice((500, 10_000, 100_000))),
            deep_dicts(draw.choice((20, 500, 10_000, 50_000))),
            shared_dicts(min(depth, 200)),
            b"\x80\x02}q\0X\x01\0\0\0ah\0s.",
            b"\x80\x02X\xff\xff\xff\xff" + b"a" * 50,
            b"\x80\x02" + b"N0" * draw.choice((1000, 100_000)) + b".",
            b"\x80\x02" + b"]" * draw.choice((1000, 300_000)) + b".",
            b"\x80\x02" + b"L" + b"7" * 5000 + b"\n.",
            b"\x80\x04\x8b" + struct.pack("<I", 5000) + b"\x01" * 5000 + b".",
            called("builtins bytearray", long_number(10 ** draw.choice((3, 10, 15))) + b"\x85"),
            called("torch FloatTensor", long_number(10 ** draw.choice((3, 10, 12))) + b"\x85"),
            called("torch UntypedStorage", long_number(10 ** draw.choice((3, 10, 12))) + b"\x85"),
            called(
                "_codecs encode", b"X" + struct.pack("<I", 200_000) + b"\xc3\xa9" * 100_000 + b"X\x04\0\0\0idna\x86"
            ),
            called(draw.choice(_GLOBALS), draw.choice(_PLAIN) + b"\x85"),
        )
    )
    return index if draw.random() < 0.3 else with_index(index, tensors)


def _opcodes(draw: random.Random, tensors: dict[str, Tensor]) -> bytes:
    """The index of a good file with opcodes, names and numbers put in, cut out and changed."""
    members = members_of(tensors)
    index = bytearray(next(part for name, part in members if name.endswith("/data.pkl")))
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(2, len(index) + 1)
        new = draw.choice(
            (*_PLAIN, *_CODES, b"h" + bytes((draw.randrange(9),)), long_number(draw.choice((0, 2**40, 10**300))))
        )
        if draw.random() < 0.3:
            module, _, function = draw.choice(_GLOBALS).partition(" ")
            new = f"c{module}\n{function}\n".encode()
        index[place : place + draw.choice((0, 0, 1, 2, 5))] = new
    return with_index(bytes(index), tensors)


def _index_bytes(draw: random.Random, tensors: dict[str, Tensor]) -> bytes:
    index = next(part for name, part in members_of(tensors) if name.endswith("/data.pkl"))
    return with_index(changed_bytes(draw, index), tensors)


def _objects(draw: random.Random, tensors: dict[str, Tensor]) -> bytes:
    """Things that torch saves and reads, and that are no plain tensors."""
    name = draw.choice(list(tensors))
    tensor = tensors[name]
    odd: list[Callable[[], Any]] = [
        lambda: tensor.to("meta"),
        lambda: tensor.to_sparse(),
        lambda: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.to(torch.float8_e4m3fn),
        lambda: tensor.to(torch.float8_e5m2),
        lambda: tensor.to(torch.float8_e8m0fnu),
        lambda: tensor.long(),
        lambda: tensor.bool(),
        lambda: tensor.to(torch.uint16),
        lambda: tensor.flatten()[:1].expand(10**6),
        lambda: tensor.flatten()[:1].expand(10**12),
        lambda: torch.zeros(()),
        lambda: torch.zeros(0, 2**40),
        lambda: torch.zeros(2, 0),
        lambda: tensor.t() if tensor.ndim == 2 else tensor[None],
        lambda: torch.nn.Parameter(tensor),
        lambda: _with_attribute(tensor, draw.choice(("isfinite", "shape", "detach", "nbytes", "x"))),
        lambda: {"a": {"b": tensor, 3: tensor, None: tensor, (1, 2): tensor, b"x": tensor, 1.5: tensor}},
        lambda: draw.choice(VALUES),
        lambda: torch.zeros(3).untyped_storage(),
        lambda: torch.float16,
        lambda: torch.nn.Linear(2, 2),
        lambda: collections.Counter("aab"),
    ]
    value = draw.choice(odd)()
    content: Any = {**tensors, draw.choice((name, *NAMES)): value}
    change = draw.randrange(6)
    if change == 0:
        content = value
    elif change == 1:
        content = _attributed(content, draw.choice(("items", "keys", "values", "x")))
    elif change == 2:
        content = {draw.choice(("state_dict", "module", "image_proj", 3, None)): content}
    elif change == 3:
        content = shared(draw.choice((10, 2000)), tensor)
    try:
        return _saved(content, new=draw.random() < 0.7)
    except Exception:  # noqa: BLE001 - what torch does not save is no case
        return zip_bytes(tensors)


def _with_attribute(tensor: Tensor, name: str) -> Tensor:
    parameter = torch.nn.Parameter(tensor.clone())
    parameter.__dict__[name] = 3
    return parameter


def _attributed(content: dict[str, Any], name: str) -> Any:
    ordered: Any = collections.OrderedDict(content)
    ordered.__dict__[name] = 3
    return ordered


def _storages(draw: random.Random, tensors: dict[str, Tensor]) -> bytes:
    return lying_storage(
        draw.choice((0, 1, 10**5, 2**31, 2**40, 2**62, 10**300)), dict([draw.choice(list(tensors.items()))])
    )


def _members_changed(draw: random.Random, tensors: dict[str, Tensor]) -> bytes:
    members = members_of(tensors)
    number = draw.randrange(len(members))
    name, part = members[number]
    change = draw.randrange(6)
    if change == 0:
        del members[number]
    elif change == 1:
        members[number] = name, part[: len(part) // 2]
    elif change == 2:
        members.append(members[number])
    elif change == 3:
        members[number] = (
            draw.choice(("/x", "../../x", f"{name}.x", "x" * 5000, "a\0b", "data.pkl", "x/data.pkl")),
            part,
        )
    elif change == 4:
        members[number] = name, changed_bytes(draw, part)
    else:
        return zipped(members, zipfile.ZIP_DEFLATED)
    return zipped(members)


def _bytes(draw: random.Random, tensors: dict[str, Tensor]) -> bytes:
    content = _saved(tensors, new=draw.random() < 0.5)
    return draw.choice((changed_bytes, early))(draw, content)


def _directory(draw: random.Random, tensors: dict[str, Tensor]) -> bytes:
    """The archive's own list, at its end."""
    content = zip_bytes(tensors)
    return content[:-600] + changed_bytes(draw, content[-600:])


def _legacy(draw: random.Random, tensors: dict[str, Tensor]) -> bytes:
    content = legacy_bytes(tensors)
    place = draw.randrange(2, min(len(content), 1500))
    return (
        content[:place]
        + draw.choice((*_PLAIN, *_CODES, long_number(2**40)))
        + content[place + draw.choice((0, 1, 2)) :]
    )


def _pickles(draw: random.Random, tensors: dict[str, Tensor]) -> bytes:
    """Python's own, of any protocol."""
    value = draw.choice((*VALUES, list(tensors), {"a": 1}, {1, 2}, b"abc", 10**3000, "x" * 10**6))
    return pickle.dumps(value, protocol=draw.randrange(6))


MUTATIONS: dict[str, Callable[[random.Random, dict[str, Tensor]], bytes]] = {
    "bombs": _bombs,
    "opcodes": _opcodes,
    "index bytes": _index_bytes,
    "objects": _objects,
    "storages": _storages,
    "members": _members_changed,
    "bytes": _bytes,
    "directory": _directory,
    "older form": _legacy,
    "pickles": _pickles,
}
