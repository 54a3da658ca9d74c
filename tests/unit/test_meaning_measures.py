"""What the measures of `support/meaning.py` say about cases whose answer is known."""

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from support.meaning import CELL, classify, half_mask, halves, leakage, psnr, ranks, ridge_classifier

SIZE = 64


def unit(count: int, width: int = 32, seed: int = 0) -> Tensor:
    return functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_a_picture_is_its_own_nearest() -> None:
    gallery = unit(20)
    assert ranks(gallery, gallery, torch.eye(20, dtype=torch.bool)).tolist() == [0] * 20


def test_rank_counts_the_nearer_ones() -> None:
    gallery = torch.eye(3)
    picture = functional.normalize(torch.tensor([[3.0, 2.0, 1.0]]), dim=1)
    places = [ranks(picture, gallery, torch.eye(3, dtype=torch.bool)[[own]]).item() for own in range(3)]
    assert places == [0, 1, 2]


def test_the_nearest_of_several_own_pictures_counts() -> None:
    picture = functional.normalize(torch.tensor([[3.0, 2.0, 1.0]]), dim=1)
    assert ranks(picture, torch.eye(3), torch.tensor([[False, True, True]])).item() == 1
    assert ranks(picture, torch.eye(3), torch.tensor([[True, False, True]])).item() == 0


def test_classes_that_lie_apart_are_told_apart() -> None:
    """Although one has ten times as many examples."""
    centres, labels = unit(3), torch.tensor([0] * 100 + [1] * 10 + [2] * 10)
    features, unseen = (functional.normalize(centres[labels] + 0.1 * unit(120, seed=seed), dim=1) for seed in (1, 2))
    assert torch.equal(classify(unseen, ridge_classifier(features, labels)), labels)


@pytest.mark.parametrize("side", ["left", "right"])
def test_leakage_is_the_ratio_of_changes(side: str) -> None:
    mask = half_mask(side, SIZE)
    plain = torch.rand(4, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0))
    changed = plain + torch.where(mask, 0.4, 0.1)[..., None]
    assert leakage(changed, plain, mask) == pytest.approx(0.25)


def test_cells_along_the_edge_do_not_leak() -> None:
    mask = half_mask("left", SIZE)
    plain = torch.zeros(1, SIZE, SIZE, 3)
    changed = plain + (torch.arange(SIZE) < SIZE // 2 + CELL)[None, :, None]
    assert leakage(changed, plain, mask) == 0
    beyond = plain + (torch.arange(SIZE) < SIZE // 2 + CELL + 1)[None, :, None]
    assert leakage(beyond, plain, mask) > 0


def test_halves_keep_their_half_and_their_place() -> None:
    picture = Image.new("RGB", (SIZE, SIZE), "red")
    picture.paste("blue", (SIZE // 2, 0, SIZE, SIZE))
    (left,), (right,) = halves([picture], "left"), halves([picture], "right")
    ends = (0, 0), (SIZE - 1, 0)
    assert [left.getpixel(end) for end in ends] == [(255, 0, 0), (255, 255, 255)]
    assert [right.getpixel(end) for end in ends] == [(255, 255, 255), (0, 0, 255)]


def test_psnr_of_a_known_error() -> None:
    picture = torch.full((2, 4, 4, 3), 0.5)
    assert psnr(picture, picture + 0.01) == pytest.approx(40, abs=1e-3)
