"""Numbers as texts and files state them."""

import math
import re
from typing import TypeGuard

from .errors import BadInputError, shown

# Of an entry such as "3: 0.5", as patterns; Python reads no whole number of thousands of digits.
NUMBER = r"[-+]?(?:\d{1,100}(?:\.\d*)?|\.\d+)"
WHOLE = r"\d{1,9}"


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value of a file is a whole number; to Python true and false are, too."""
    return isinstance(value, int) and not isinstance(value, bool)


def entries(text: str) -> list[str]:
    """What stands between commas, semicolons and line ends, without the empty ones."""
    return [entry for part in re.split(r"[,;\n]", text) if (entry := part.strip())]


def parse_numbers(text: str, what: str) -> list[float]:
    """Numbers separated by commas, semicolons, spaces or line ends; none of an empty text.

    Args:
        what: they are, for the message.

    Raises:
        BadInputError: something that is no finite number.
    """
    try:
        numbers = [float(word) for entry in entries(text) for word in entry.split()]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise BadInputError(
            f"{what} '{shown(text)}'",
            expected="numbers separated by commas, such as '1, 0.5'",
            action="correct the list",
        )
    return numbers
