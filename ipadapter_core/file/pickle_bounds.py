"""Looks through a pickle of tensors before torch builds anything of it: bounded in steps, and in what it may call.

torch's reader runs no code of the file, but believes it: a few hundred bytes make tuples that take years to hash, tensors
of terabytes, or tensors that lie beyond the data that the file holds.
"""

import io
import pickle
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

_MOST_STEPS = 2_000_000
_LONGEST_TEXT = 1 << 26  # bytes
_LONGEST_LINE = 1_000
_LARGEST_PICKLE = 1 << 28  # bytes of an archive's data.pkl
_MOST_MEMBERS = 200_000
_MOST_IN_TUPLE, _MOST_TUPLES_DEEP = 100_000, 64
_LEGACY_PARTS = 5  # pickles behind each other: magic number, version, system, content, keys of the data
_LARGEST_KEY = 2**53  # an integer that is a name; larger ones can be made to collide in a dictionary
_ITEM_SIZES = {
    **dict.fromkeys(("Untyped", "Byte", "Char", "Bool", "QInt8", "QUInt8"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
# What may be called. Sparse, quantised and nested tensors, subclasses and bare storages are foreign objects here.
_CALLED = (
    "collections.OrderedDict",
    "collections.Counter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter",
    "torch.Size",
    "torch.device",
    "builtins.set",
    "_codecs.encode",
)
_CODECS = ("latin1", "latin-1")  # as Python's own pickles of bytes have it; others take time by the square of the text


class ForeignPickleError(ValueError):
    """It wants something called that plain tensors do not need."""


@dataclass(frozen=True)
class _Name:
    """A global that the pickle names."""

    path: str


@dataclass(frozen=True)
class _Tuple:
    """With what it holds when it is written out, and how deep."""

    items: tuple[object, ...]
    count: int
    depth: int

    @classmethod
    def of(cls, items: tuple[object, ...]) -> "_Tuple":
        inner = [item for item in items if isinstance(item, _Tuple)]
        count = 1 + len(items) + sum(item.count for item in inner)
        depth = 1 + max((item.depth for item in inner), default=0)
        if count > _MOST_IN_TUPLE or depth > _MOST_TUPLES_DEEP:
            raise ValueError(f"tuples in tuples, {depth} deep with {count} entries")
        return cls(items, count, depth)


@dataclass
class _Scan:
    """A pickle machine that keeps of each value only what tells how large things would become.

    Attributes:
        stored: bytes that each stretch of tensor data must have, by its key.
    """

    stream: IO[bytes]
    allowed: frozenset[str]
    stored: dict[str, int] = field(default_factory=dict)
    stack: list[object] = field(default_factory=list)
    marks: list[list[object]] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)
    steps: int = 0

    def run(self) -> bool:
        """Go through one pickle; False at a code that torch does not know either, where it stops as well."""
        while True:
            code = self.stream.read(1)
            if not code:
                raise ValueError("it ends in the middle")
            if code == pickle.STOP:
                self.stack, self.marks, self.memo = [], [], {}
                return True
            step = _STEPS.get(code)
            if step is None:
                return False
            self.steps += 1
            if self.steps > _MOST_STEPS:
                raise ValueError(f"more than {_MOST_STEPS} steps")
            step(self)

    def take(self, layout: str) -> int:
        size = struct.calcsize(layout)
        (number,) = struct.unpack(layout, self.stream.read(size))
        return int(number)

    def text(self, layout: str) -> None:
        length = self.take(layout)
        if length > _LONGEST_TEXT:
            raise ValueError(f"a text of {length} bytes")
        content = self.stream.read(length)
        if len(content) < length:
            raise ValueError("it ends in the middle")
        self.stack.append(content.decode("utf-8", "replace") if length < _LONGEST_LINE else "")

    def version(self) -> None:
        self.take("<B")

    def long(self) -> None:
        self.stack.append(int.from_bytes(self.stream.read(self.take("<B")), "little", signed=True))

    def name(self) -> None:
        module, name = (self.stream.readline(_LONGEST_LINE)[:-1].decode() for _ in range(2))
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.stack.append(_Name(f"{module}.{name}"))

    def popped(self) -> list[object]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def tuple(self, length: int | None = None) -> None:
        items = self.popped() if length is None else [self.stack.pop() for _ in range(length)][::-1]
        self.stack.append(_Tuple.of(tuple(items)))

    def call(self, *, is_new: bool) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, _Name) or called.path not in self.allowed:
            raise ForeignPickleError(called.path if isinstance(called, _Name) else "something it made itself")
        if called.path == "_codecs.encode" and not is_new:
            codec = arguments.items[1:] if isinstance(arguments, _Tuple) else ()
            if len(codec) != 1 or codec[0] not in _CODECS:
                raise ForeignPickleError("codecs")
        self.stack.append(None)

    def build(self) -> None:
        self.stack.pop()

    def extend(self, *, many: bool, pairs: bool) -> None:
        items = self.popped() if many else [self.stack.pop() for _ in range(1 + pairs)][::-1]
        for key in items[::2] if pairs else ():
            if isinstance(key, int) and abs(key) > _LARGEST_KEY:
                raise ValueError(f"a name that is the number {key:.3e}" if abs(key) < 2**1000 else "a huge name")

    def storage(self) -> None:
        reference = self.stack.pop()
        items = reference.items if isinstance(reference, _Tuple) else ()
        kind, key, numel = (items[1], items[2], items[4]) if len(items) > 4 else (None, None, None)
        if items[:1] == ("storage",) and isinstance(kind, _Name) and isinstance(numel, int):
            size = _ITEM_SIZES.get(kind.path.rpartition(".")[2].removesuffix("Storage"))
            if size is None or numel < 0:
                raise ValueError(f"data of kind {kind.path[:60]} and length {numel:.3g}")
            self.stored[str(key)] = max(numel * size, self.stored.get(str(key), 0))
        self.stack.append(None)

    def get(self, layout: str) -> None:
        self.stack.append(self.memo[self.take(layout)])

    def put(self, layout: str) -> None:
        self.memo[self.take(layout)] = self.stack[-1]

    def push(self, value: object = None, skip: int = 0) -> None:
        self.stream.read(skip)
        self.stack.append(value)


_STEPS: Mapping[bytes, Callable[[_Scan], None]] = {
    pickle.PROTO: _Scan.version,
    pickle.GLOBAL: _Scan.name,
    pickle.NEWOBJ: lambda scan: scan.call(is_new=True),
    pickle.REDUCE: lambda scan: scan.call(is_new=False),
    pickle.BUILD: _Scan.build,
    pickle.APPEND: lambda scan: scan.extend(many=False, pairs=False),
    pickle.APPENDS: lambda scan: scan.extend(many=True, pairs=False),
    pickle.SETITEM: lambda scan: scan.extend(many=False, pairs=True),
    pickle.SETITEMS: lambda scan: scan.extend(many=True, pairs=True),
    pickle.MARK: _Scan.mark,
    pickle.TUPLE: _Scan.tuple,
    pickle.TUPLE1: lambda scan: scan.tuple(1),
    pickle.TUPLE2: lambda scan: scan.tuple(2),
    pickle.TUPLE3: lambda scan: scan.tuple(3),
    pickle.EMPTY_TUPLE: lambda scan: scan.tuple(0),
    **dict.fromkeys(
        (pickle.NONE, pickle.NEWFALSE, pickle.NEWTRUE, pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET),
        _Scan.push,
    ),
    pickle.BININT: lambda scan: scan.push(scan.take("<i")),
    pickle.BININT1: lambda scan: scan.push(scan.take("<B")),
    pickle.BININT2: lambda scan: scan.push(scan.take("<H")),
    pickle.BINFLOAT: lambda scan: scan.push(skip=8),
    pickle.LONG1: _Scan.long,
    pickle.BINUNICODE: lambda scan: scan.text("<I"),
    pickle.SHORT_BINSTRING: lambda scan: scan.text("<B"),
    pickle.BINPERSID: _Scan.storage,
    pickle.BINGET: lambda scan: scan.get("<B"),
    pickle.LONG_BINGET: lambda scan: scan.get("<I"),
    pickle.BINPUT: lambda scan: scan.put("<B"),
    pickle.LONG_BINPUT: lambda scan: scan.put("<I"),
}


def check_pickle(path: Path, *, is_zip: bool) -> None:
    """Make sure that torch can build what a file holds in bounded time, of the data that the file has.

    Raises:
        ForeignPickleError: it wants something called that plain tensors do not need.
        Exception: of any kind, where it is damaged.
    """
    safe = map(_path_of, torch.serialization.get_safe_globals())
    allowed = frozenset((*_CALLED, *(name for name in safe if not name.startswith("torch."))))
    if is_zip:
        _check_zip(path, allowed)
        return
    with path.open("rb") as file:
        scan = _Scan(file, allowed)
        for _ in range(_LEGACY_PARTS):
            if not scan.run():
                return
        total, size = sum(scan.stored.values()), path.stat().st_size
        if total > size:
            raise ValueError(f"{total} bytes of tensors in a file of {size} bytes")


def _path_of(item: Any) -> str:
    return str(item[1]) if isinstance(item, tuple) else f"{item.__module__}.{item.__qualname__}"


def _check_zip(path: Path, allowed: frozenset[str]) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = Counter(member.filename for member in members)
        size = path.stat().st_size
        if len(members) > _MOST_MEMBERS:
            raise ValueError(f"an archive of {len(members)} files")
        twice = next((name for name, count in names.items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"an archive that holds {twice[:60]!a} twice")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"an archive whose {member.filename[:60]!a} is compressed, as torch never does it")
            if member.file_size > size:
                raise ValueError(f"an archive of {size} bytes whose {member.filename[:60]!a} has {member.file_size}")
        for member in members:
            folder, _, name = member.filename.rpartition("/")
            if name == "data.pkl":
                _check_member(archive, member, folder, allowed)


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: str, allowed: frozenset[str]) -> None:
    if member.file_size > _LARGEST_PICKLE:
        raise ValueError(f"an index of {member.file_size} bytes")
    with archive.open(member) as file:
        scan = _Scan(io.BytesIO(file.read()), allowed)
    scan.run()
    for key, wanted in scan.stored.items():
        held = archive.NameToInfo.get(f"{folder}/data/{key}" if folder else f"data/{key}")
        if held is not None and held.file_size < wanted:
            raise ValueError(f"a tensor of {wanted} bytes whose data has {held.file_size}")
