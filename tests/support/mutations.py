"""Mutations of bytes and of JSON that know the form of what they break."""

import random
from collections.abc import Callable
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]
DIGITS = 5000
SURROGATE, NUL, ESCAPE = "\ud800", "a\0b.png", "\x1b]0;pwned\x07"


def truncated(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data) + 1)]


def flipped(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 4, 64))):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def flipped_in_front(chance: random.Random, data: bytes) -> bytes:
    """Where headers are."""
    return flipped(chance, data[:64]) + data[64:]


def overwritten(chance: random.Random, data: bytes) -> bytes:
    """A number of two or four bytes becomes an extreme one."""
    size = chance.choice((1, 2, 4, 8))
    value = chance.choice((b"\xff", b"\0", b"\x7f", b"\x80")) * size
    start = chance.randrange(max(1, len(data) - size))
    return data[:start] + value + data[start + size :]


def spliced(chance: random.Random, data: bytes) -> bytes:
    """A part of it again, elsewhere."""
    start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    place = chance.randrange(len(data) + 1)
    return data[:place] + data[start:end] + data[place:]


def removed(chance: random.Random, data: bytes) -> bytes:
    start, end = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    return data[:start] + data[end:]


def noise(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(32)] + chance.randbytes(chance.randrange(2000))


BYTES: tuple[Mutation, ...] = (truncated, flipped, flipped_in_front, overwritten, spliced, removed, noise)


def odd_value(chance: random.Random) -> Any:
    """What no reader of a table expects."""
    deep: Any = "x"
    for _ in range(chance.choice((3, 200))):
        deep = [deep] if chance.random() < 0.5 else {"text": deep}
    return chance.choice(
        (
            None, True, 0, -1, 2**70, 1.5, 1e308, "", " ", SURROGATE, [SURROGATE], ["a", SURROGATE], NUL, ESCAPE, "a" * 5000,
            "a" * 300_000, "../" * 40 + "etc/hostname", "/etc/hostname", "C:\\x.png", "http://127.0.0.1:9/x.png", "pipe:true",
            [], {}, [[]], [1, 2], {"path": "0.png"}, {"bytes": "x"}, deep, "\u202e\u2066gnp.0", "[red]x[/]", "<b>", "\x85\u2028",
        )
    )  # fmt: skip
