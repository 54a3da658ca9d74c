"""What the readers of adapter files ask of shapes."""

import re
from collections.abc import Collection

from ..errors import UnreadableFileError
from .signatures import Shapes, dim_of


def matrix(shapes: Shapes, name: str) -> tuple[int, int]:
    """Rows and columns. Raises UnreadableFileError: it is missing, or no matrix."""
    shape = shapes.get(name)
    if shape is None:
        raise inconsistent(f"{name} is missing")
    if len(shape) != 2:
        raise inconsistent(f"{name} has shape {list(shape)}, not that of a matrix")
    return shape[0], shape[1]


def numbered(shapes: Shapes, pattern: re.Pattern[str]) -> int:
    """How many layers there are, by the numbers in their names (group 1 of the pattern), which have to run 0, 1, 2 ….

    Raises:
        UnreadableFileError: there is none, or a number is left out.
    """
    found = {int(match[1]) for name in shapes if (match := pattern.fullmatch(name))}
    if not found:
        raise inconsistent(f"no tensors named {pattern.pattern}")
    if gap := set(range(max(found) + 1)) - found:
        raise inconsistent(f"layer numbers do not run 0, 1, 2 …: {_first(gap)} missing")
    return len(found)


def block_dims(shapes: Shapes, pattern: re.Pattern[str]) -> tuple[int, ...]:
    """Channels of each block of a transformer, whose layers are numbered 0, 1, 2 …, as a UNet's never are.

    Arguments and errors as those of `numbered` and `matrix`.
    """
    return tuple(matrix(shapes, f"ip_adapter.{index}.to_k_ip.weight")[0] for index in range(numbered(shapes, pattern)))


def tokens_of(shapes: Shapes, name: str) -> tuple[int, int]:
    """How many tokens a last layer of this name makes for a reference, and how wide the norm behind it says they are.

    Raises:
        UnreadableFileError: its rows are no multiple of that width.
    """
    rows, _ = matrix(shapes, name)
    dim = dim_of(shapes, "image_proj.norm.weight", 0)
    if not dim or rows % dim:
        raise inconsistent(f"{name} has {rows} rows, not a multiple of image_proj.norm.weight's {dim}")
    return rows // dim, dim


def _first(numbers: Collection[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers)[:4])


def inconsistent(found: str) -> UnreadableFileError:
    """Tensors that do not fit each other."""
    return UnreadableFileError(found, expected="tensors that fit each other", action="download or export it again")
