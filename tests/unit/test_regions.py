"""Regions: neighbours add up, edges are as wide as said, and a pixel on a hard edge has its part."""

import pytest
import torch

from ipadapter_core.box import Box
from ipadapter_core.branch.regions import REGIONS, named_box, region_mask, softened

PARTITIONS = [
    ("left", "right"),
    ("top", "bottom"),
    ("left third", "middle third", "right third"),
    ("upper third", "central third", "lower third"),
]


@pytest.mark.parametrize("names", PARTITIONS, ids=lambda names: names[0])
@pytest.mark.parametrize("feather", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("size", [(64, 96), (33, 57), (512, 768)])
def test_neighbours_add_up_to_all(names: tuple[str, ...], feather: float, size: tuple[int, int]) -> None:
    masks = [region_mask(REGIONS[name], *size, feather) for name in names]
    torch.testing.assert_close(sum(masks), torch.ones(size), rtol=0, atol=1e-6)
    assert all(mask.min() >= 0 and mask.max() == 1 for mask in masks)
    assert all(mask.mean() < 0.9 for mask in masks)


def test_without_a_feather_a_pixel_has_the_part_of_it_that_lies_inside() -> None:
    assert region_mask(REGIONS["left"], 2, 5).tolist() == [[1, 1, 0.5, 0, 0]] * 2
    mask = region_mask(Box(0.25, 0.5, 0.75, 1.0), 2, 8)
    assert mask.tolist() == [[0] * 8, [0, 0, 1, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize("feather", [0.1, 0.25])
def test_edges_are_as_wide_as_part_of_the_shorter_side(feather: float) -> None:
    row = region_mask(REGIONS["left"], 200, 400, feather)[0]
    between = (row > 0) & (row < 1)
    assert int(between.sum()) == pytest.approx(200 * feather, abs=1)
    assert row[199] + row[200] == pytest.approx(1)


@pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (0.6, 0, 0.4, 1), (0, -0.1, 1, 1), (0, 0, 1.2, 1)])
def test_a_box_that_is_none(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"a box from .*What to do: let it begin and end within the picture"):
        Box(*box)


def test_a_box_up_to_the_edge_is_one_whatever_rounding_does() -> None:
    assert region_mask(Box(0.1, 0.7, 0.1 + 0.9, 0.7 + 0.30000000000000004), 10, 10)[-1, -1] == 1


def test_a_softened_mask_keeps_its_range_and_its_flat_parts() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1
    soft = softened(mask, 0.25)
    assert soft.shape == mask.shape
    assert soft.min() == 0
    assert soft.max() == pytest.approx(1)
    assert ((soft > 0.01) & (soft < 0.99)).float().mean() > 0.1
    assert soft.mean() == pytest.approx(mask.mean().item(), abs=1e-3)
    assert softened(mask, 0.0) is mask
    torch.testing.assert_close(softened(torch.ones(2, 8, 8), 0.5), torch.ones(2, 8, 8))


def test_an_unknown_region_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="left third"):
        named_box("lefft")
