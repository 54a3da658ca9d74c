"""Curves as SVG for `report.html`, in the colours of the page, light or dark."""

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Point = tuple[float, float]
# What matplotlib draws in, and the page's variable that takes its place.
_COLORS = {name: f"#0102{number:02x}" for number, name in enumerate(("ink", "grid", "a", "b", "c", "faint"))}
_SIZE = (4.8, 2.5)  # inches of 72 px
_MOST_POINTS = 600
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 8,
    "text.color": _COLORS["ink"],
    "axes.edgecolor": _COLORS["grid"],
    "axes.labelcolor": _COLORS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _COLORS["grid"],
    "grid.linewidth": 0.5,
    "xtick.color": _COLORS["ink"],
    "ytick.color": _COLORS["ink"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


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
        with matplotlib.rc_context({**_STYLE, "svg.hashsalt": self.title}):
            figure = Figure(figsize=_SIZE, layout="constrained")
            axes = figure.add_subplot()
            for curve in filter(lambda curve: curve.points, self.curves):
                color = _COLORS[curve.color]
                x, y = zip(*thinned(curve.points), strict=True)
                width = 1.0 if curve.color == "faint" else 1.6
                axes.plot(x, y, color=color, linewidth=width, marker="o" if len(x) == 1 else None, markersize=3)
                if curve.errors:
                    low, high = (
                        [value + sign * error for (_, value), error in zip(curve.points, curve.errors, strict=True)]
                        for sign in (-1, 1)
                    )
                    axes.fill_between(
                        [step for step, _ in curve.points], low, high, color=color, alpha=0.15, linewidth=0
                    )
            if self.zero_line:
                axes.axhline(0, color=_COLORS["ink"], linewidth=0.8)
            axes.set_xlabel(self.x_label)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.ticklabel_format(axis="y", scilimits=(-4, 4), useOffset=False)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return _for_page(buffer.getvalue(), self.title)


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


# What of matplotlib's SVG has no place inside a page: its size, ids that every figure has, fonts, and global styles.
_UNWANTED = (
    r' width="[^"]*pt" height="[^"]*pt"',
    r' id="[a-zA-Z.0-9]+_\d+"',
    r"font-family: [^;]*; ",
    r"<metadata>.*?</metadata>",
    r"<style.*?</style>",
)


def _for_page(svg: str, title: str) -> str:
    svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
    for pattern in _UNWANTED:
        svg = re.sub(pattern, "", svg, flags=re.DOTALL)
    for name, color in _COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    return svg
