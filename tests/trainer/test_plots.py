"""Curves of the report: read off the page as a person does, by the marks of the axes."""

import math
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
import pytest

from ipadapter_trainer.watch.plots import Curve, Plot, smoothed, thinned

Points = Sequence[tuple[float, float]]
SPACE = "{http://www.w3.org/2000/svg}"
MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
PIXEL = 0.06  # places are written with one digit


class Page:
    """A plot's SVG as it is read."""

    def __init__(self, *curves: Curve, zero_line: bool = False) -> None:
        self.svg = Plot("A & B", "", "step", curves, zero_line).svg
        self.root = ElementTree.fromstring(self.svg)
        self.texts = [(text.text or "", dict(text.attrib)) for text in self.root.iter(f"{SPACE}text")]

    def marks(self, axis: str) -> dict[float, float]:
        """Place on the page by the number that stands there."""
        is_x = axis == "x"
        rows = [
            (text, mark)
            for text, mark in self.texts
            if mark["text-anchor"] == ("middle" if is_x else "end") and re.fullmatch(rf"[{MINUS}\d.]+", text)
        ]
        shift = 0.0 if is_x else 8 / 3  # from the middle of a letter to the line it stands on
        factor = self.factor(axis)
        return {float(text.replace(MINUS, "-")) * factor: float(mark[axis]) - shift for text, mark in rows}

    def factor(self, axis: str) -> float:
        found = [
            text for text, mark in self.texts if TIMES in text and (mark["text-anchor"] == "middle") == (axis == "x")
        ]
        return float(found[0].partition(TIMES)[2]) if found else 1.0

    def read(self, places: str) -> np.ndarray:
        """The values of places in an attribute `points`."""
        x, y = zip(*(map(float, place.split(",")) for place in places.split()), strict=True)
        return np.stack([self._values(axis, np.array(given)) for axis, given in (("x", x), ("y", y))], axis=1)

    def _values(self, axis: str, given: np.ndarray) -> np.ndarray:
        marks = sorted(self.marks(axis).items())
        (low, start), (high, end) = marks[0], marks[-1]
        return low + (given - start) / (end - start) * (high - low)

    def tolerance(self, axis: str) -> float:
        (low, start), (high, end) = (sorted(self.marks(axis).items())[side] for side in (0, -1))
        return abs((high - low) / (end - start)) * 3 * PIXEL

    def lines(self, color: str) -> list[np.ndarray]:
        """Lines of a colour."""
        found = self.root.iter(f"{SPACE}polyline")
        return [self.read(line.attrib["points"]) for line in found if line.attrib["stroke"] == f"var(--{color})"]

    def assert_shows(self, values: np.ndarray, wanted: Points) -> None:
        for column, axis in enumerate("xy"):
            expected = np.array([point[column] for point in wanted])
            np.testing.assert_allclose(values[:, column], expected, rtol=0, atol=self.tolerance(axis))


@pytest.mark.parametrize(
    "points",
    [
        [(10.0, 0.2), (20.0, 0.25), (45.0, 0.1)],
        [(1.0, 1e-7), (2.0, 8e-7), (3.0, 2e-7)],
        [(0.0, -3.0), (7_000_000.0, 5.0), (9_000_000.0, 40.0)],
        [(100.0, 12_345_678.0), (900.0, 22_345_678.0)],
        [(1.0, 0.91234), (2.0, 0.91236)],
    ],
)
def test_a_line_goes_through_its_points_by_the_marks(points: Points) -> None:
    page = Page(Curve(points, "a"))
    (line,) = page.lines("a")
    page.assert_shows(line, points)
    assert all(mark.is_integer() for mark in page.marks("x"))
    assert 3 <= len(page.marks("y")) <= 7
    assert max(len(text) for text, mark in page.texts if mark["text-anchor"] == "end") <= 8


def test_a_value_that_stays_and_a_single_one_are_shown() -> None:
    page = Page(Curve([(10, 1e-4), (20, 1e-4)], "a"))
    page.assert_shows(page.lines("a")[0], [(10, 1e-4), (20, 1e-4)])
    single = Page(Curve([(10, 0.5)], "b"))
    assert single.lines("b") == []
    (dot,) = single.root.iter(f"{SPACE}circle")
    assert abs(float(dot.attrib["cx"]) - single.marks("x")[10]) < PIXEL
    assert abs(float(dot.attrib["cy"]) - single.marks("y")[0.5]) < PIXEL


def test_a_band_is_as_high_as_the_errors_and_zero_is_on_the_page() -> None:
    points, errors = [(100.0, 0.5), (200.0, 0.7)], [0.1, 0.2]
    page = Page(Curve(points, "b", errors=errors), zero_line=True)
    (band,) = page.root.iter(f"{SPACE}polygon")
    page.assert_shows(page.read(band.attrib["points"]), [(100, 0.4), (200, 0.5), (200, 0.9), (100, 0.6)])
    (zero,) = page.lines("ink")
    assert np.abs(zero[:, 1]).max() < page.tolerance("y")
    frame = np.concatenate(page.lines("grid"))
    assert frame[:, 1].min() < 0


def test_what_is_no_number_is_left_out() -> None:
    page = Page(Curve([(1, math.nan), (2, 0.5), (3, math.inf), (4, 0.75)], "a"), Curve([], "b"))
    page.assert_shows(page.lines("a")[0], [(2, 0.5), (4, 0.75)])
    assert Page(Curve([(1, math.nan)], "a")).lines("a") == []


def test_many_points_are_thinned() -> None:
    (line,) = Page(Curve([(float(step), 1.0 + step) for step in range(3000)], "faint")).lines("faint")
    assert len(line) == 600


def test_means_of_the_smoothing_and_thinning() -> None:
    constant = [(step, 2.0) for step in range(1000)]
    assert all(y == pytest.approx(2.0) for _, y in smoothed(constant))
    few = thinned([(float(step), float(step % 2)) for step in range(1000)], most=100)
    assert len(few) == 100
    assert all(y == 0.5 for _, y in few)
    assert thinned(constant[:7]) == constant[:7]


def test_plots_take_the_colors_of_the_page_and_say_what_they_are() -> None:
    page = Page(Curve([(0, 1), (1, 2)], "a", errors=[0.1, 0.1]))
    assert page.svg.startswith('<svg role="img" aria-label="A &amp; B"')
    assert set(re.findall(r'(?:fill|stroke)="([^"]*)"', page.svg)) == {"none", "var(--a)", "var(--grid)", "var(--ink)"}
    assert "step" in [text for text, _ in page.texts]
