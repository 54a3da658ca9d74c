"""Numbers as people say them: durations, bytes, counts; names and others' words as they may be shown."""

from datetime import timedelta

_KEPT = "\n\t"
_DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ENDS_OF_LINES = (0x2028, 0x2029)
_UNSEEN = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (*range(0x20), *range(0x7F, 0xA0), *_DIRECTIONS, *_ENDS_OF_LINES, *range(0xD800, 0xE000))
    if chr(code) not in _KEPT
}
_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_THOUSAND = 1000


def visible(text: str) -> str:
    """With `\\x1b` and the like in place of what a terminal obeys, of what turns the direction of writing, and of halves
    of characters; line feeds and tabs stay."""
    return text.translate(_UNSEEN)


def first_line(error: BaseException) -> str:
    """Of what another program says went wrong; the kind of error where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def duration(seconds: float) -> str:
    """`2 d 3 h`, `4 h 5 min`, `6 min`, `7 s`."""
    left = timedelta(seconds=round(seconds))
    hours, minutes = left.seconds // 3600, left.seconds % 3600 // 60
    if left.days:
        return f"{left.days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{left.seconds} s"


def size(nbytes: float) -> str:
    """`9.1 GB`: units of a thousand, as makers of disks and of GPUs' data sheets count."""
    for unit in _UNITS:
        if nbytes < _THOUSAND or unit == _UNITS[-1]:
            return f"{nbytes:.0f} {unit}" if unit == "bytes" or nbytes >= 100 else f"{nbytes:.1f} {unit}"
        nbytes /= _THOUSAND
    raise AssertionError


def count(number: float) -> str:
    """`49.2 million`, `12,345`."""
    for value, name in ((1e9, "billion"), (1e6, "million")):
        if number >= value:
            return f"{number / value:.1f} {name}"
    return f"{number:,.0f}"


def times(number: float) -> str:
    """`18 times`, `once`, `0.4 times`."""
    if number == 1:
        return "once"
    return f"{number:.1f} times" if number < 10 and round(number, 1) != round(number) else f"{number:,.0f} times"
