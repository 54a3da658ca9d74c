"""Weights over frames and regions, as they come out of the nodes; `tests/unit/test_weight_schedule.py` has the curves."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from legacy.running import outputs

WIDGETS: dict[str, Any] = {
    "weights": "1.0, 0.0",
    "timing": "linear",
    "frames": 3,
    "start_frame": 0,
    "end_frame": 9999,
    "add_starting_frames": 0,
    "add_ending_frames": 0,
    "method": "full batch",
}


def numbered(count: int) -> Tensor:
    """Pictures whose every value is their number."""
    return torch.arange(count).float()[:, None, None, None].expand(count, 2, 2, 3)


def numbers(images: Tensor | None) -> list[int] | None:
    return None if images is None else images[:, 0, 0, 0].int().tolist()


def test_full_batch(base_directory: Path) -> None:
    weights, inverted, total, first, second, strategy = outputs("IPAdapterWeights", **WIDGETS, image=numbered(2))
    assert weights == [1.0, 0.5, 0.0] * 2
    assert inverted == [0.0, 0.5, 1.0] * 2
    assert total == 6
    assert numbers(first) == [0, 0, 0, 1, 1, 1]
    assert second is None
    assert strategy == {**WIDGETS, "frame_count": 2}


def test_inverted_weights_are_reversed_not_one_minus(base_directory: Path) -> None:
    weights, inverted, *_ = outputs("IPAdapterWeights", **{**WIDGETS, "weights": "0.2, 0.7, 0.1", "timing": "custom"})
    assert (weights, inverted) == ([0.2, 0.7, 0.1], [0.1, 0.7, 0.2])


@pytest.mark.parametrize(
    ("method", "weights", "first", "second"),
    [
        ("full batch", [1, 1, 0.5, 0] + [1, 0.5, 0] * 2 + [0, 0], [0] * 4 + [1] * 3 + [2] * 5, None),
        ("shift batches", [1, 1, 0.5, 0, 1, 0.5, 0, 0, 0], [0] * 4 + [1] * 3 + [2] * 2, [0] + [1] * 3 + [2] * 5),
        ("alternate batches", [1, 1, 0.5, 0, 0, 0.5, 1, 1, 1], [0] * 4 + [2] * 5, [0] + [1] * 6 + [2] * 2),
    ],
)
def test_cross_fades(
    base_directory: Path, method: str, weights: list[float], first: list[int], second: list[int] | None
) -> None:
    """Added frames have the first and the last weight, and in both outputs the first and the last source image."""
    widgets = {**WIDGETS, "method": method, "add_starting_frames": 1, "add_ending_frames": 2}
    given, inverted, total, image_1, image_2, _ = outputs("IPAdapterWeights", **widgets, image=numbered(3))
    assert given == weights
    assert inverted == weights[::-1]
    assert total == len(weights)
    assert (numbers(image_1), numbers(image_2)) == (first, second)


@pytest.mark.parametrize("frames", [2, 40])
def test_random_weights_are_pythons(base_directory: Path, frames: int) -> None:
    """From its global generator: whoever seeds that gets the same picture. The last weight is the one stated."""
    widgets = {**WIDGETS, "weights": "0.2, 0.9", "timing": "random", "frames": frames}
    random.seed(3)
    expected = [random.uniform(0.2, 0.9) for _ in range(frames)]
    after = random.random()
    random.seed(3)
    assert outputs("IPAdapterWeights", **widgets)[0] == [*expected[:-1], 0.9]
    assert random.random() == after


def test_strategy_runs_again_for_another_batch(base_directory: Path) -> None:
    widgets = {**WIDGETS, "timing": "ease_in", "method": "shift batches", "add_ending_frames": 1}
    strategy = outputs("IPAdapterWeights", **widgets, image=numbered(2))[-1]
    through_json = json.loads(json.dumps(strategy))
    again = outputs("IPAdapterWeightsFromStrategy", weights_strategy=through_json, image=numbered(3))
    direct = outputs("IPAdapterWeights", **widgets, image=numbered(3))
    assert again[0] == direct[0] == pytest.approx([1, 1 - math.sin(math.pi / 4), 0] * 2 + [0])
    assert again[1:3] == direct[1:3]
    assert numbers(again[4]) == numbers(direct[4])
    assert again[5] == strategy | {"frame_count": 3}


def test_prompts_follow_the_strategy(base_directory: Path) -> None:
    strategy = outputs("IPAdapterWeights", **{**WIDGETS, "add_starting_frames": 4}, image=numbered(2))[-1]
    (lines,) = outputs("IPAdapterPromptScheduleFromWeightsStrategy", weights_strategy=strategy, prompt="fox\nowl\ncat")
    assert lines.splitlines() == ['"0": "fox",', '"4": "fox",', '"7": "owl",']


def test_weights_one_behind_the_other(base_directory: Path) -> None:
    assert outputs("IPAdapterCombineWeights", weights_1=[1.0, 0.5], weights_2=[0.2]) == ([1.0, 0.5, 0.2], 3)
    assert outputs("IPAdapterCombineWeights", weights_1=0.3, weights_2=[0.2]) == ([0.3, 0.2], 2)


REGION = {"image_weight": 0.8, "prompt_weight": 2.5, "weight_type": "ease in", "start_at": 0.1, "end_at": 0.9}


def test_region(base_directory: Path) -> None:
    image, mask = numbered(1), torch.ones(4, 4)
    text, negative = ([[torch.zeros(1, 2, 3), {"pooled_output": None}]] for _ in range(2))
    params, positive_out, negative_out = outputs(
        "IPAdapterRegionalConditioning", image=image, mask=mask, positive=text, negative=negative, **REGION
    )
    assert {name: len(values) for name, values in params.items()} == dict.fromkeys(params, 1)
    assert params["image"][0] is image
    assert params["attn_mask"][0] is mask
    given = {name: params[name][0] for name in ("weight", "weight_type", "start_at", "end_at")}
    assert given == {"weight": 0.8, "weight_type": "ease in", "start_at": 0.1, "end_at": 0.9}
    for out, source in ((positive_out, text), (negative_out, negative)):
        assert out[0][0] is source[0][0]
        assert torch.equal(out[0][1]["mask"], mask[None])
        assert out[0][1]["mask_strength"] == 2.5
        assert out[0][1]["set_area_to_bounds"] is False
        assert source[0][1] == {"pooled_output": None}


def test_region_without_mask_or_prompt(base_directory: Path) -> None:
    text = [[torch.zeros(1, 2, 3), {}]]
    params, positive, negative = outputs("IPAdapterRegionalConditioning", image=numbered(1), positive=text, **REGION)
    assert params["attn_mask"] == [None]
    assert positive is text
    assert negative is None


def test_regions_one_behind_the_other(base_directory: Path) -> None:
    images = [numbered(1) + number for number in range(3)]
    parts = [outputs("IPAdapterRegionalConditioning", image=image, **REGION)[0] for image in images]
    (params,) = outputs("IPAdapterCombineParams", params_1=parts[0], params_2=parts[1], params_4=parts[2])
    assert [numbers(image) for image in params["image"]] == [[0], [1], [2]]
    assert all(len(values) == 3 for values in params.values())
    assert len(parts[0]["image"]) == 1  # what came in stays as it was
    broken = {name: value for name, value in parts[0].items() if name != "attn_mask"}
    with pytest.raises(ValueError, match="without attn_mask"):
        outputs("IPAdapterCombineParams", params_1=parts[0], params_2=broken)
