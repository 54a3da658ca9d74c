"""A part of a picture."""

from dataclasses import dataclass

from .errors import BadInputError

_ROUNDING = 1e-6  # of a place and a width that are added


@dataclass(frozen=True)
class Box:
    """Part of a picture; all of 0..1, from the left and from the top.

    Raises:
        BadInputError: empty, or not within the picture.
    """

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0

    def __post_init__(self) -> None:
        for low, high, name in ((self.left, self.right, "left to right"), (self.top, self.bottom, "top to bottom")):
            if not 0 <= low < high <= 1 + _ROUNDING:
                raise BadInputError(
                    f"a box from {low:.4g} to {high:.4g} ({name})",
                    expected="a box within the picture, which goes from 0 to 1",
                    action="let it begin and end within the picture, and be wider and higher than 0",
                )
