"""An adapter acts from its start to its end point, both included, as the model's own schedule places them."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipadapter_core.branch.schedule import PercentRange, SigmaRange, percent_range
from ipadapter_core.errors import BadInputError


def falling(percent: float) -> float:
    """As ComfyUI's `percent_to_sigma`: nearly infinite at the start, 0 at the end."""
    return 1e9 if percent <= 0 else 0.0 if percent >= 1 else 14.0 * (1 - percent)


def test_the_whole_sampling_needs_no_range() -> None:
    assert percent_range(0, 1) is None


@pytest.mark.parametrize(
    ("start", "end", "wanted"),
    [(0, 0.5, SigmaRange(1e9, 7.0)), (0.5, 1, SigmaRange(7.0, 0.0)), (0.25, 0.75, SigmaRange(10.5, 3.5))],
)
def test_percents_become_sigmas_of_the_model(start: float, end: float, wanted: SigmaRange) -> None:
    assert PercentRange(start, end).sigmas(falling) == wanted


@pytest.mark.parametrize(
    ("sigma", "acts"), [(10.1, False), (10.0, True), (5.0, True), (1.0, True), (0.9, False), (0.0, False)]
)
def test_both_ends_are_included(sigma: float, acts: bool) -> None:
    gate = SigmaRange(10.0, 1.0).gate(torch.tensor([sigma]))
    assert (gate.shape, gate.dtype, gate.item()) == ((), torch.bool, acts)


def test_the_first_sigma_of_a_batch_counts() -> None:
    assert SigmaRange(10.0, 1.0).gate(torch.tensor([5.0, 0.0])).item()
    assert not SigmaRange(10.0, 1.0).gate(torch.tensor([[0.0], [5.0]])).item()
    assert SigmaRange(10.0, 1.0).gate(torch.tensor(5.0)).item()


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_step_acts_exactly_if_it_lies_between_start_and_end(first: float, second: float, step: float) -> None:
    start, end = sorted((first, second))
    acting = percent_range(start, end)
    sigma = torch.tensor(falling(step), dtype=torch.float64)
    acts = True if acting is None else bool(acting.sigmas(falling).gate(sigma))
    assert acts == (falling(end) <= falling(step) <= falling(start))


@pytest.mark.parametrize(
    ("start", "end"),
    [(0.6, 0.5), (-0.1, 1), (0, 1.1), (1.5, 2), (float("nan"), 1), (0, float("nan"))],
)
def test_impossible_ranges_are_refused(start: float, end: float) -> None:
    phrase = f"acts from {start:g} to {end:g} of the sampling. Expected: 0 <= start <= end <= 1"
    with pytest.raises(BadInputError, match=re.escape(phrase)):
        percent_range(start, end)


@pytest.mark.parametrize(
    ("start", "end", "same_as"),
    [
        (0.0, 1.0000001192092896, (0, 1)),  # the float32 after 1
        (-1e-9, 0.5, (0, 0.5)),
        (0.30000001192092896, 0.3, (0.3, 0.3)),  # the float32 next to 0.3
        (1.0000001192092896, 1.0, (1, 1)),
    ],
)
def test_what_rounding_left_outside_counts_as_the_end_itself(start: float, end: float, same_as: tuple) -> None:
    assert percent_range(start, end) == percent_range(*same_as)


def test_a_range_that_is_just_too_long_is_shown_so_that_it_makes_sense() -> None:
    with pytest.raises(BadInputError, match=r"to 1\.00001 of the sampling\. Expected"):
        percent_range(0, 1.00001)
