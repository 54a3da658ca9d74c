"""Weights over frames, against the formulas written out."""

import math
from dataclasses import replace
from typing import Any

import pytest

from ipadapter_core.errors import BadInputError
from ipadapter_core.legacy.weight_schedule import (
    METHODS,
    TIMINGS,
    Strategy,
    parse_weights,
    prompt_schedule,
    schedule_weights,
)

PLAIN = Strategy(
    weights="1.0, 0.0",
    timing="linear",
    frames=5,
    start_frame=0,
    end_frame=9999,
    add_starting_frames=0,
    add_ending_frames=0,
    method="full batch",
)


def weights(**changes: Any) -> list[float]:
    return schedule_weights(replace(PLAIN, **changes), 0).weights


@pytest.mark.parametrize(
    ("timing", "way"),
    [
        ("linear", [0, 1 / 4, 2 / 4, 3 / 4, 1]),
        ("ease_in_out", [(1 - math.cos(math.pi * i / 4)) / 2 for i in range(5)]),
        ("ease_in", [math.sin(math.pi * i / 8) for i in range(5)]),
        ("ease_out", [1 - math.cos(math.pi * i / 8) for i in range(5)]),
    ],
)
def test_timing_runs_from_the_first_to_the_last_weight(timing: str, way: list[float]):
    assert weights(weights="0.2, 9, 0.8", timing=timing) == pytest.approx([0.2 + 0.6 * x for x in way])


def test_custom_takes_the_weights_as_they_are():
    schedule = schedule_weights(replace(PLAIN, weights="1, .5\n0.25,\n", timing="custom", frames=9, end_frame=1), 0)
    assert schedule.weights == [1, 0.5, 0.25]
    assert schedule.strategy.frames == 3


def test_random_stays_in_range_and_ends_at_the_last_weight():
    drawn = weights(timing="random", frames=200)
    assert drawn[-1] == 0.0
    assert all(0 <= weight <= 1 for weight in drawn)
    assert len(set(drawn)) == 200


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"start_frame": 2}, [1, 1, 1, 0.5, 0]),
        ({"end_frame": 3}, [1, 0.5, 0, 0, 0]),
        ({"start_frame": 1, "end_frame": 4}, [1, 1, 0.5, 0, 0]),
        ({"start_frame": 3, "end_frame": 4}, [1, 1, 1, 0, 0]),
        ({"start_frame": 3, "end_frame": 2}, [1, 1, 1, 0, 0]),
        ({"start_frame": 50}, [1, 1, 1, 1, 1]),
        ({"frames": 0}, [1, 0]),
        ({"frames": 2, "add_starting_frames": 2, "add_ending_frames": 1}, [1, 1, 1, 0, 0]),
    ],
)
def test_window_and_padding(changes: dict[str, int], expected: list[float]):
    assert weights(**changes) == expected


@pytest.mark.parametrize(
    ("method", "images", "expected_weights", "first", "second"),
    [
        ("full batch", 2, [1, 0] * 2, [0, 0, 1, 1], None),
        ("shift batches", 3, [1, 0] * 2, [0, 0, 1, 1], [1, 1, 2, 2]),
        ("alternate batches", 4, [1, 0, 0, 1, 1, 0], [0, 0, 2, 2, 2, 2], [1, 1, 1, 1, 3, 3]),
        ("alternate batches", 2, [1, 0], [0, 0], [1, 1]),
        ("shift batches", 0, [1, 0], None, None),
    ],
)
def test_images_of_the_frames(
    method: str, images: int, expected_weights: list[float], first: list[int] | None, second: list[int] | None
):
    schedule = schedule_weights(replace(PLAIN, frames=2, method=method), images)
    assert (schedule.weights, schedule.first, schedule.second) == (expected_weights, first, second)
    assert schedule.strategy.frame_count == images


def test_alternating_inverts_within_the_curves_own_range():
    schedule = schedule_weights(replace(PLAIN, weights="0.9, 0.5", frames=3, method="alternate batches"), 3)
    assert schedule.weights == pytest.approx([0.9, 0.7, 0.5, 0.5, 0.7, 0.9])


def test_padding_repeats_the_first_and_the_last_source_image_on_both_sides():
    strategy = replace(PLAIN, frames=2, method="shift batches", add_starting_frames=1, add_ending_frames=2)
    schedule = schedule_weights(strategy, 2)
    assert schedule.weights == [1, 1, 0, 0, 0]
    assert (schedule.first, schedule.second) == ([0, 0, 0, 1, 1], [0, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("start", "end", "prompts", "expected"),
    [
        (0, 0, "a\n\nb\nc", '"0": "a",\n"4": "b",\n"8": "c",'),
        (0, 0, "a", '"0": "a",\n"4": "a",\n"8": "a",'),
        (0, 0, "a\nb\nc\nd", '"0": "a",\n"4": "b",\n"8": "c",'),
        (2, 3, "a\nb", '"0": "a",\n"2": "a",\n"6": "b",\n"10": "b",\n"14": "b",'),
        (0, 0, " \n", ""),
    ],
)
def test_prompts_begin_with_their_images(start: int, end: int, prompts: str, expected: str):
    strategy = replace(PLAIN, frames=4, frame_count=3, add_starting_frames=start, add_ending_frames=end)
    assert prompt_schedule(strategy, prompts) == expected


def test_strategy_goes_through_a_plain_dictionary():
    stated = replace(PLAIN, frame_count=3).to_dict()
    assert Strategy.from_dict(stated) == replace(PLAIN, frame_count=3)
    assert Strategy.from_dict(stated | {"weights": [1.0, 0.0], "more": 1}).weights == "1.0, 0.0"
    with pytest.raises(BadInputError, match="without timing, method"):
        Strategy.from_dict({name: value for name, value in stated.items() if name not in ("timing", "method")})


@pytest.mark.parametrize("text", ["", " ,\n", "1, one", "nan"])
def test_bad_weights_are_named(text: str):
    with pytest.raises(BadInputError, match="numbers separated by commas"):
        parse_weights(text)


@pytest.mark.parametrize(
    ("changes", "images", "message"),
    [
        ({"timing": "bounce"}, 0, "timing 'bounce'.*custom, linear"),
        ({"method": "shuffle"}, 0, "method 'shuffle'.*full batch"),
        ({"method": "shift batches"}, 1, "one image for 'shift batches'"),
        ({"method": "alternate batches"}, 1, "one image for 'alternate batches'"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, str], images: int, message: str):
    with pytest.raises(BadInputError, match=message):
        schedule_weights(replace(PLAIN, **changes), images)


def test_choices():
    assert METHODS == ("full batch", "shift batches", "alternate batches")
    assert TIMINGS == ("custom", "linear", "ease_in_out", "ease_in", "ease_out", "random")
