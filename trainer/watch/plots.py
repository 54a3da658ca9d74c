"""Curves as SVG for `report.html`, in the colours of the page, light or dark.

Drawn here, as a plotting library takes longer for a report than a small run takes to train.
"""

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat

Point = tuple[float, float]
_WIDTH, _HEIGHT = 346, 180  # of the whole, in the page's units
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 338, 14, 146  # of the frame
_FONT = 8
_MOST_POINTS = 600
_MOST_STEPS = 5  # between the marks of an axis
_PLAIN_POWERS = range(-3, 7)  # of ten, for which an axis needs no factor
_ROOM = 0.05  # share of an axis that stays free at either end
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Curve:
    """A line of a plot.

    Attributes:
        color: "a", "b", "c" or "faint", as the page defines them.
        errors: half the height of a band around the line, one per point, or none.
        label: for the legend; none without it.
    """

    points: Sequence[Point]
    color: str
    label: str | None = None
    errors: Sequence[float] = ()


@dataclass(frozen=True)
class Plot:
    """A figure of the report: what it shows, and a sentence on how to read it."""

    title: str
    note: str
    x_label: str
    curves: Sequence[Curve]
    zero_line: bool = False

    @property
    def is_labelled(self) -> bool:
        return all(curve.label is not None for curve in self.curves)

    @property
    def svg(self) -> str:
        """An `<svg>` element that takes its colours and font from the page."""
        curves = [_finite(curve) for curve in self.curves]
        steps = [x for curve in curves for x, _ in curve.points]
        heights = [value for curve in curves for value in _heights(curve)]
        x = _axis(steps, (_LEFT, _RIGHT), least_step=1.0)
        y = _axis([*heights, 0.0] if self.zero_line else heights, (_BOTTOM, _TOP))
        parts = [
            f'<svg role="img" aria-label="{html.escape(self.title)}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'font-size="{_FONT}" fill="var(--ink)" xmlns="http://www.w3.org/2000/svg">',
            *_frame(x, y, self.x_label),
            *(part for curve in curves for part in _drawn(curve, x, y)),
        ]
        if self.zero_line:
            parts.append(_line([(_LEFT, y.at(0)), (_RIGHT, y.at(0))], "ink", 0.8))
        return "\n".join((*parts, "</svg>"))


@dataclass(frozen=True)
class _Axis:
    """What lies between its two ends on the page; multiples of `step` are marked."""

    low: float
    high: float
    step: float
    ends: tuple[float, float]

    def at(self, value: float) -> float:
        start, end = self.ends
        return start + (value - self.low) / (self.high - self.low) * (end - start)

    @property
    def marks(self) -> list[float]:
        first, last = math.ceil(self.low / self.step), math.floor(self.high / self.step)
        return [number * self.step for number in range(first, last + 1)]

    @property
    def power(self) -> int:
        """Of ten, which the marks leave out and which stands beside them once."""
        largest = max(map(abs, self.marks), default=0.0)
        power = math.floor(math.log10(largest)) if largest else 0
        return 0 if power in _PLAIN_POWERS else power

    def text(self, mark: float) -> str:
        digits = max(0, self.power - math.floor(math.log10(self.step) + _ROUNDING))
        return f"{mark / 10.0**self.power:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def smoothed(points: Sequence[Point], decay: float = 0.9) -> list[Point]:
    """Exponential mean without the pull towards its start."""
    smooth, mean, weight = [], 0.0, 0.0
    for x, y in points:
        mean = decay * mean + (1 - decay) * y
        weight = decay * weight + (1 - decay)
        smooth.append((x, mean / weight))
    return smooth


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """Means of neighbours where there are more points than a screen has room for."""
    size = -(-len(points) // most)
    groups = (points[start : start + size] for start in range(0, len(points), size or 1))
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _axis(values: Sequence[float], ends: tuple[float, float], least_step: float = 0.0) -> _Axis:
    low, high = min(values, default=0.0), max(values, default=1.0)
    if math.isclose(low, high, rel_tol=1e-9):
        room = abs(low) * _ROOM or _ROOM
        low, high = low - room, high + room
    margin = (high - low) * _ROOM
    return _Axis(low - margin, high + margin, max(least_step, _round_step((high - low) / _MOST_STEPS)), ends)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 and 10 times a power of ten that is not below."""
    power = 10.0 ** math.floor(math.log10(least))
    return power * next(factor for factor in (1, 2, 5, 10) if factor * (1 + _ROUNDING) >= least / power)


def _finite(curve: Curve) -> Curve:
    """Without what is no number."""
    errors = curve.errors or [0.0] * len(curve.points)
    kept = [
        (point, error)
        for point, error in zip(curve.points, errors, strict=True)
        if all(map(math.isfinite, (*point, error)))
    ]
    return replace(curve, points=[point for point, _ in kept], errors=curve.errors and [error for _, error in kept])


def _heights(curve: Curve) -> Iterator[float]:
    for (_, y), error in zip(curve.points, curve.errors or repeat(0.0), strict=False):
        yield from (y - error, y + error)


def _frame(x: _Axis, y: _Axis, x_label: str) -> Iterator[str]:
    """The grid, what it stands for, and the two axes."""
    for mark in y.marks:
        yield _line([(_LEFT, y.at(mark)), (_RIGHT, y.at(mark))], "grid", 0.5)
        yield _text(_LEFT - 4, y.at(mark) + _FONT / 3, y.text(mark), "end")
    for mark in x.marks:
        yield _line([(x.at(mark), _TOP), (x.at(mark), _BOTTOM)], "grid", 0.5)
        yield _text(x.at(mark), _BOTTOM + _FONT + 4, x.text(mark), "middle")
    yield _line([(_LEFT, _TOP), (_LEFT, _BOTTOM), (_RIGHT, _BOTTOM)], "grid", 0.8)
    yield _text((_LEFT + _RIGHT) / 2, _HEIGHT - _FONT, x_label + _factor(x), "middle")
    if y.power:
        yield _text(_LEFT, _TOP - 5, _factor(y).strip(), "start")


def _factor(axis: _Axis) -> str:
    return f" \N{MULTIPLICATION SIGN} 1e{axis.power}" if axis.power else ""


def _drawn(curve: Curve, x: _Axis, y: _Axis) -> Iterator[str]:
    if curve.errors:
        with_errors = list(zip(curve.points, curve.errors, strict=True))
        low, high = ([(step, value + sign * error) for (step, value), error in with_errors] for sign in (-1, 1))
        band = _places([*low, *reversed(high)], x, y)
        yield f'<polygon points="{_listed(band)}" fill="var(--{curve.color})" fill-opacity="0.15"/>'
    places = _places(thinned(curve.points), x, y)
    if len(places) == 1:
        ((across, down),) = places
        yield f'<circle cx="{across:.1f}" cy="{down:.1f}" r="1.5" fill="var(--{curve.color})"/>'
    elif places:
        yield _line(places, curve.color, 1.0 if curve.color == "faint" else 1.6)


def _places(points: Sequence[Point], x: _Axis, y: _Axis) -> list[Point]:
    return [(x.at(step), y.at(value)) for step, value in points]


def _listed(places: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _line(places: Sequence[Point], color: str, width: float) -> str:
    return (
        f'<polyline points="{_listed(places)}" fill="none" stroke="var(--{color})" stroke-width="{width}" '
        'stroke-linejoin="round" stroke-linecap="round"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
