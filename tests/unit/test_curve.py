"""Curves: read, named, over frames, and in the sigmas of a noise schedule."""

import math

import pytest
import torch

from ipadapter_core.branch.schedule import curve_in_sigmas
from ipadapter_core.strength.curve import CURVES, Curve, named_curve, parse_curve, turns

JUMP = Curve(((0.0, 1.0), (0.5, 1.0), (0.5, 0.2), (1.0, 0.0)))


def test_lines_between_points_and_jumps() -> None:
    assert [JUMP.at(time) for time in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx([1, 1, 0.2, 0.1, 0])
    late = Curve(((0.4, 0.0), (0.6, 1.0)))
    assert [late.at(time) for time in (0.0, 0.5, 1.0)] == pytest.approx([0, 0.5, 1])
    assert Curve(((0.3, 0.7),)).at(0.9) == 0.7


def test_points_are_read_as_they_are_written() -> None:
    assert parse_curve("0: 1, 0.5: 1\n0.5:0.2 ; 1 : 0") == JUMP
    assert parse_curve("0: -0.5").points == ((0.0, -0.5),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a curve of 0 points"),
        ("1: 0, 0: 1", "never back"),
        ("0: 1, 1.5: 0", "from 0 to 1.5"),
        ("half: 1", "'half: 1' in the points"),
        ("0.5", "'0.5' in the points"),
        ("0: 1e999", "in the points"),
        ("0: 1000", "a factor of 1000"),
        (", ".join(f"{n / 2000}: 1" for n in range(1001)), "1001 points"),
    ],
)
def test_what_is_no_curve(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*What to do"):
        parse_curve(text)


@pytest.mark.parametrize("name", CURVES)
def test_named_curves_lie_between_low_and_high_and_reach_one_of_them(name: str) -> None:
    factors = named_curve(name, 0.2, 0.8).over_frames(33)
    assert min(factors) >= 0.2 - 1e-9
    assert max(factors) == pytest.approx(0.8)
    if name != "constant":
        assert min(factors) == pytest.approx(0.2, abs=1e-6)
    if name in ("fade in", "ease in", "second half"):
        assert list(factors) == sorted(factors)
        assert factors[0] == pytest.approx(0.2)
    if name in ("fade out", "ease out", "first half"):
        assert list(factors) == sorted(factors, reverse=True)


def test_an_unknown_curve_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="fade in"):
        named_curve("fade", 0, 1)


@pytest.mark.parametrize("frames", [1, 2, 7, 16])
@pytest.mark.parametrize("references", [2, 3, 5])
def test_references_take_turns(references: int, frames: int) -> None:
    shares = turns(references, frames)
    assert all(sum(share[frame] for share in shares) == pytest.approx(1) for frame in range(frames))
    assert shares[0][0] == 1
    if frames > 1:
        assert shares[-1][-1] == 1
        assert max(sum(share[frame] > 0 for share in shares) for frame in range(frames)) <= 2


def sigma_of(percent: float) -> float:
    """As ComfyUI's: a number beyond all at 0."""
    return 999999999.9 if percent <= 0 else 14.6 * (1 - percent) ** 2


@pytest.mark.parametrize("curve", [JUMP, named_curve("peak in the middle", 0, 1), Curve(((0.0, 0.4),))])
def test_in_sigmas_it_is_what_it_is_in_time(curve: Curve) -> None:
    table = curve_in_sigmas(curve, sigma_of, 14.6)
    for time in (0.0, 0.1, 0.3, 0.49, 0.51, 0.7, 0.999, 1.0):
        sigma = torch.tensor([min(sigma_of(time), 14.6)] * 2)
        assert float(table.factor(sigma)) == pytest.approx(curve.at(time), abs=0.01), time
    assert table.factor(torch.tensor([1e9])).ndim == 0
    assert math.isfinite(float(table.factor(torch.tensor([1e9]))))
    assert float(table.factor(torch.zeros(1))) == pytest.approx(curve.at(1.0), abs=1e-6)
