"""Strengths that change from the beginning to the end, of a sampling or of an animation."""

import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import BadInputError, one_of, shown
from ..numbers import NUMBER, entries

_MOST_POINTS = 1000
_SAMPLES = 64  # stretches of a smooth curve
_POINT = re.compile(rf"({NUMBER})\s*:\s*({NUMBER})")
_LARGEST = 100.0  # a factor; beyond it there is no picture left


@dataclass(frozen=True)
class Curve:
    """Straight lines between points; before the first and behind the last it stays as it is there.

    Attributes:
        points: (time, factor), times 0..1 and never falling; of two at one time the second is behind a jump.

    Raises:
        BadInputError: none, too many, or a time or factor that cannot be used.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        times = [time for time, _ in self.points]
        is_ordered = all(first <= second for first, second in itertools.pairwise(times))
        if not 0 < len(times) <= _MOST_POINTS or not is_ordered or not 0 <= times[0] <= times[-1] <= 1:
            raise BadInputError(
                f"a curve of {len(times)} points" + (f" from {times[0]:.4g} to {times[-1]:.4g}" if times else ""),
                expected=f"1 to {_MOST_POINTS} points whose times go from 0 to 1 and never back",
                action="order the points by their time, 0 at the beginning and 1 at the end",
            )
        wild = next((factor for _, factor in self.points if abs(factor) > _LARGEST), None)
        if wild is not None:
            raise BadInputError(
                f"a factor of {wild:.4g} in a curve",
                expected=f"factors from {-_LARGEST:g} to {_LARGEST:g}; 1 is as set, 0 is off",
                action="make it smaller",
            )

    def at(self, time: float) -> float:
        """The factor at a time; at a jump the one behind it."""
        behind = bisect_right(self.points, time, key=lambda point: point[0])
        if behind in (0, len(self.points)):
            return self.points[min(behind, len(self.points) - 1)][1]
        (first, low), (second, high) = self.points[behind - 1 : behind + 1]
        return low + (high - low) * (time - first) / (second - first)

    def over_frames(self, count: int) -> tuple[float, ...]:
        """The factor of each of so many frames, from the beginning to the end."""
        return tuple(self.at(frame / max(count - 1, 1)) for frame in range(count))

    @property
    def is_neutral(self) -> bool:
        return all(factor == 1 for _, factor in self.points)


@dataclass(frozen=True)
class Schedule:
    """How strengths change: over the steps of a sampling, or over the frames of an animation.

    Attributes:
        frames: of the animation; None is over the steps.
        fades: the references take turns over the frames, each fading into the next.
    """

    curve: Curve
    frames: int | None = None
    fades: bool = False


def turns(references: int, frames: int) -> tuple[tuple[float, ...], ...]:
    """How much of each reference each frame has, where they fade into one another; together 1 in every frame."""
    stretch = max(references - 1, 1)
    return tuple(
        tuple(max(0.0, 1 - abs(frame / max(frames - 1, 1) * stretch - reference)) for frame in range(frames))
        for reference in range(references)
    )


_SMOOTH: Mapping[str, Callable[[float], float]] = {
    "fade in": lambda t: t,
    "fade out": lambda t: 1 - t,
    "ease in": lambda t: t * t * (3 - 2 * t),
    "ease out": lambda t: 1 - t * t * (3 - 2 * t),
    "peak in the middle": lambda t: math.sin(math.pi * t),
    "dip in the middle": lambda t: 1 - math.sin(math.pi * t),
}
_STEPS: Mapping[str, tuple[tuple[float, float], ...]] = {
    "constant": ((0.0, 1.0),),
    "first half": ((0.0, 1.0), (0.5, 1.0), (0.5, 0.0)),
    "second half": ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0)),
}
CURVES: tuple[str, ...] = (*_STEPS, *_SMOOTH)


def named_curve(name: str, low: float, high: float) -> Curve:
    """A curve between two factors. Raises BadInputError for an unknown name."""
    one_of(name, CURVES, "curve")
    shape = _STEPS.get(name) or tuple((t / _SAMPLES, _SMOOTH[name](t / _SAMPLES)) for t in range(_SAMPLES + 1))
    return Curve(tuple((time, low + (high - low) * part) for time, part in shape))


def parse_curve(text: str) -> Curve:
    """A curve of "time: factor" pairs, separated by commas or line ends.

    Raises:
        BadInputError: something else stands there; or as `Curve`.
    """
    points = []
    for entry in entries(text):
        match = _POINT.fullmatch(entry)
        if match is None:
            raise BadInputError(
                f"'{shown(entry)}' in the points of a curve",
                expected="a time from 0 to 1 and a factor, such as '0.5: 0.3'",
                action="correct it",
            )
        points.append((float(match[1]), float(match[2])))
    return Curve(tuple(points))
