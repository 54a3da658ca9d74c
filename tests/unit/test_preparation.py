"""References and masks cut to squares: where the square lies, what fills it, and that the host resizes it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ipadapter_core.encoder.sharpen import sharpen
from ipadapter_core.errors import BadInputError
from ipadapter_core.legacy.preparation import CROP_POSITIONS, prepare, square_masks


def coded(height: int, width: int) -> Tensor:
    """Every pixel says where it lies: red is its row, green its column, in 1/255."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, 255)], dim=-1)[None] / 255


def nearest(pictures: Tensor, width: int, height: int) -> Tensor:
    return functional.interpolate(pictures, size=(height, width), mode="nearest")


def corners(prepared: Tensor) -> list[list[int]]:
    return [(prepared[0, y, x] * 255).round().int().tolist()[:2] for y, x in ((0, 0), (-1, -1))]


@pytest.mark.parametrize(
    ("size", "position", "expected"),
    [
        ((224, 250), "top", [[0, 13], [223, 236]]),
        ((224, 250), "bottom", [[0, 13], [223, 236]]),
        ((224, 250), "left", [[0, 0], [223, 223]]),
        ((224, 250), "right", [[0, 26], [223, 249]]),
        ((224, 250), "center", [[0, 13], [223, 236]]),
        ((250, 224), "top", [[0, 0], [223, 223]]),
        ((250, 224), "bottom", [[26, 0], [249, 223]]),
        ((250, 224), "left", [[13, 0], [236, 223]]),
        ((250, 224), "right", [[13, 0], [236, 223]]),
        ((250, 224), "center", [[13, 0], [236, 223]]),
    ],
)
def test_crop(size: tuple[int, int], position: str, expected: list[list[int]]) -> None:
    prepared = prepare(coded(*size), position, 0.0, nearest)
    assert prepared.shape == (1, 224, 224, 3)
    assert corners(prepared) == expected


@pytest.mark.parametrize(("size", "framed"), [((224, 113), (224, 223)), ((113, 224), (223, 224)), ((2, 4), (4, 4))])
def test_pad_puts_the_same_black_on_both_ends(size: tuple[int, int], framed: tuple[int, int]) -> None:
    seen: list[Tensor] = []

    def resize(pictures: Tensor, width: int, height: int) -> Tensor:
        seen.append(pictures)
        return nearest(pictures, width, height)

    prepare(torch.full((1, *size, 3), 0.6), "pad", 0.0, resize)
    assert seen[0].shape == (1, 3, *framed)
    assert torch.equal(seen[0], seen[0].flip(2, 3))
    assert seen[0].count_nonzero() == 3 * size[0] * size[1]


def test_the_host_resizes_squares_to_224() -> None:
    seen: list[tuple[int, ...]] = []

    def resize(pictures: Tensor, width: int, height: int) -> Tensor:
        seen.append((*pictures.shape, width, height))
        return nearest(pictures, width, height)

    assert prepare(torch.rand(2, 30, 20, 4), "center", 0.0, resize).shape == (2, 224, 224, 3)
    assert seen == [(2, 3, 20, 20, 224, 224)]


def test_sharpening_comes_after_resizing() -> None:
    picture = torch.rand(1, 100, 100, 3, generator=torch.Generator().manual_seed(0))
    plain, sharp = (prepare(picture, "top", amount, nearest) for amount in (0.0, 0.4))
    torch.testing.assert_close(sharp, sharpen(plain.movedim(-1, 1), 0.4).movedim(1, -1))
    assert not torch.allclose(sharp, plain)


def test_an_unknown_position_is_refused() -> None:
    with pytest.raises(BadInputError, match=f"crop position 'corner'.*{', '.join(CROP_POSITIONS)}"):
        prepare(torch.rand(1, 4, 4, 3), "corner", 0.0, nearest)


@pytest.mark.parametrize("size", [(6, 10), (10, 6), (7, 10)])
def test_of_a_mask_the_middle_square_counts(size: tuple[int, int]) -> None:
    """A mask of its own size is not resampled, so that its middle comes out as it is."""
    masks = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    side = min(size)
    top, left = (round((length - side) / 2) for length in size)  # as torchvision's centre crop
    squares = square_masks(masks, side)
    assert squares.shape == (2, 1, side, side)
    torch.testing.assert_close(squares[:, 0], masks[:, top : top + side, left : left + side])
    assert square_masks(torch.ones(1, *size), 21).sub(1).abs().max() < 1e-6
