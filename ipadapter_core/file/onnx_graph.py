"""What is looked at in an ONNX file before a program that runs it opens it: that its network comes to an end.

A loop may turn 2^63 times, and forty functions that each call the next one twice are 2^40 operations; nothing of the
file's size tells. Networks that find and recognise faces have neither. The file is protobuf: a list of numbered fields,
of which those with a length are skipped or hold fields again.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

from ..errors import UnreadableFileError
from .faults import damaged, unreadable

KIND = "face model"
_LOOPS = frozenset({b"Loop", b"Scan"})
_MOST_FIELDS = 1_000_000  # real ones have some ten thousand
_DEEPEST = 16
_LONGEST_NUMBER = 10  # bytes
_MOST_KEYS = 2**32
_NUMBER, _EIGHT_BYTES, _TEXT, _FOUR_BYTES = 0, 1, 2, 5  # how a field is written
# Fields of ONNX's messages that lead to nodes: the message a field holds, by message and number.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE = "model", "graph", "node", "attribute"
_INNER = {
    (_MODEL, 7): _GRAPH,
    (_GRAPH, 1): _NODE,
    (_NODE, 5): _ATTRIBUTE,
    (_ATTRIBUTE, 6): _GRAPH,
    (_ATTRIBUTE, 11): _GRAPH,
}
_FUNCTIONS, _OPERATION = (_MODEL, 25), (_NODE, 4)
Field = tuple[int, int, int]  # number, start, end


def check_network(path: Path) -> None:
    """Make sure that a network ends, however long it takes.

    Raises:
        UnreadableFileError: it has a loop or functions, or the file is none of a network.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = _Reader(content).endless()
    except OSError as error:
        raise unreadable(path, KIND, error) from error
    except ValueError as error:  # of mmap too: an empty file
        raise damaged(path, KIND, f"no ONNX network ({error})") from error
    if found is not None:
        raise UnreadableFileError(
            f"{path.name}, a network with {found}, which may never end",
            expected="networks that find and recognise faces, as in buffalo_l; they have none",
            action="take this file out of its folder, or unpack the face pack again",
        )


class _Reader:
    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._room = content, _MOST_FIELDS

    def endless(self) -> str | None:
        """What may never end."""
        left = [(_MODEL, 0, len(self._content), 0)]
        while left:
            message, start, end, level = left.pop()
            if level > _DEEPEST * 3:  # graph, node, attribute
                raise ValueError(f"graphs more than {_DEEPEST} deep")
            for number, first, last in self._fields(start, end):
                if (message, number) == _FUNCTIONS:
                    return "functions of its own"
                if (message, number) == _OPERATION and self._content[first:last] in _LOOPS:
                    return f"a loop ({self._content[first:last].decode()})"
                inner = _INNER.get((message, number))
                if inner is not None:
                    left.append((inner, first, last, level + 1))
        return None

    def _fields(self, place: int, end: int) -> Iterator[Field]:
        """Those with a length."""
        while place < end:
            self._room -= 1
            if self._room < 0:
                raise ValueError(f"more than {_MOST_FIELDS} fields")
            key, place = self._number(place, end)
            if key >= _MOST_KEYS:  # of which protobuf forgets the upper bits
                raise ValueError(f"a field of key {key}")
            number, form = key >> 3, key & 7
            if form == _NUMBER:
                _, place = self._number(place, end)
            elif form == _TEXT:
                length, place = self._number(place, end)
                if length > end - place:
                    raise ValueError(f"a field of {length} bytes where {end - place} are left")
                yield number, place, place + length
                place += length
            elif form in (_EIGHT_BYTES, _FOUR_BYTES):
                place += 8 if form == _EIGHT_BYTES else 4
            else:
                raise ValueError(f"a field of form {form}")
        if place != end:
            raise ValueError("it ends within a field")

    def _number(self, place: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(_LONGEST_NUMBER):
            if place >= end:
                raise ValueError("it ends within a number")
            byte = self._content[place]
            place += 1
            value |= (byte & 0x7F) << 7 * shift
            if byte < 0x80:
                return value & (2**64 - 1), place
        raise ValueError("a number without end")
