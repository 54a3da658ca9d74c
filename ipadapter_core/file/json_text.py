"""JSON of strangers: bounded in depth and in the length of its numbers, and without names that stand there twice."""

import json
from collections.abc import Sequence

MOST_DIGITS = 40
MOST_LEVELS = 32


def parse_json(text: str | bytes) -> object:
    """What a JSON text says.

    Raises:
        ValueError: no JSON, or more than a file of ours or of the libraries' needs: nested too deeply, a number of very
            many digits, a name that stands twice in one object, text that is no text (a lone surrogate).
    """
    try:
        value = json.loads(text, parse_int=_integer, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    _check_depth(value)
    return value


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _object(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:60]!r} twice in one object")
        if not name.isascii():
            name.encode()  # a UnicodeEncodeError is a ValueError
        found[name] = value
    return found


def _check_depth(value: object) -> None:
    level, depth = [value], 0
    while level:
        if depth > MOST_LEVELS:
            raise ValueError(f"nested more than {MOST_LEVELS} deep")
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
            elif isinstance(item, str) and not item.isascii():
                item.encode()
        level, depth = inner, depth + 1
