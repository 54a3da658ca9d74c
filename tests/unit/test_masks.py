"""A mask of any size becomes one number from 0 to 1 per cell of any feature map, without bending its shape."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipadapter_core.branch.masks import check_mask, mask_to_tokens
from ipadapter_core.errors import BadInputError

sides = st.integers(1, 70)
cells = st.integers(1, 20)


@given(st.integers(1, 3), sides, sides, cells, cells, st.integers(0, 2**31))
def test_any_mask_gives_one_number_per_cell(
    masks: int, height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    mask = torch.rand(masks, height, width, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    tokens = mask_to_tokens(check_mask(mask), rows, columns)
    assert tokens.shape == (masks, rows * columns, 1)
    assert tokens.min() >= 0
    assert tokens.max() <= 1


@given(st.floats(0, 1, width=32), sides, sides, cells, cells)
def test_a_constant_mask_stays_constant(value: float, height: int, width: int, rows: int, columns: int) -> None:
    tokens = mask_to_tokens(torch.full((1, height, width), value), rows, columns)
    torch.testing.assert_close(tokens, torch.full_like(tokens, value), rtol=0, atol=1e-5)


@given(sides, sides, cells, cells)
def test_full_and_empty_masks_stay_exactly_so(height: int, width: int, rows: int, columns: int) -> None:
    assert (mask_to_tokens(torch.ones(1, height, width), rows, columns) == 1).all()
    assert (mask_to_tokens(torch.zeros(1, height, width), rows, columns) == 0).all()


@given(st.integers(1, 35), sides, st.integers(1, 10), cells, st.booleans())
def test_a_half_frame_stays_a_half_frame(half: int, other: int, half_cells: int, cells: int, upright: bool) -> None:
    mask = torch.zeros(1, other, 2 * half)
    mask[..., :half] = 1
    wanted = torch.zeros(cells, 2 * half_cells)
    wanted[:, :half_cells] = 1
    if upright:
        given_map = mask_to_tokens(mask, cells, 2 * half_cells).reshape(cells, 2 * half_cells)
    else:
        given_map = mask_to_tokens(mask.mT, 2 * half_cells, cells).reshape(2 * half_cells, cells).mT
    assert torch.equal(given_map, wanted)


@given(cells, cells, st.integers(1, 6), st.integers(1, 6))
def test_a_whole_number_of_pixels_per_cell_is_averaged(rows: int, columns: int, high: int, wide: int) -> None:
    mask = torch.rand(1, rows * high, columns * wide, dtype=torch.float64)
    wanted = mask.reshape(rows, high, columns, wide).mean((1, 3))
    torch.testing.assert_close(mask_to_tokens(mask, rows, columns).reshape(rows, columns), wanted, rtol=0, atol=1e-12)


def test_cells_run_row_by_row() -> None:
    mask = torch.zeros(1, 20, 30)
    mask[0, :10, 20:] = 1
    assert mask_to_tokens(mask, 2, 3).flatten().tolist() == [0, 0, 1, 0, 0, 0]


def test_a_single_mask_may_come_without_batch() -> None:
    mask = torch.rand(5, 7)
    assert torch.equal(check_mask(mask), mask[None])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.bool])
def test_masks_of_every_dtype_become_float32(dtype: torch.dtype) -> None:
    mask = torch.tensor([[[0, 1], [1, 0]]]).to(dtype)
    assert check_mask(mask).dtype == torch.float32
    assert torch.equal(check_mask(mask), mask.float())


@pytest.mark.parametrize(
    ("mask", "phrase"),
    [
        (torch.ones(5), "a mask of shape [5]"),
        (torch.ones(1, 3, 8, 8), "a mask of shape [1, 3, 8, 8]"),
        (torch.ones(1, 0, 8), "a mask of shape [1, 0, 8]"),
        (torch.ones(0, 8, 8), "a mask of shape [0, 8, 8]"),
        (torch.tensor([[0.5, float("nan")]]), "a mask with NaN or infinite values"),
        (torch.tensor([[0.5, float("inf")]]), "a mask with NaN or infinite values"),
        (torch.tensor([[0.5, 1.25]]), "a mask with values from 0.5 to 1.25"),
        (torch.tensor([[-0.5, 1.0]]), "a mask with values from -0.5 to 1"),
    ],
)
def test_what_is_no_mask_says_why(mask: torch.Tensor, phrase: str) -> None:
    with pytest.raises(BadInputError) as caught:
        check_mask(mask)
    assert str(caught.value).startswith(f"Found: {phrase}. Expected: ")
    assert " What to do: " in str(caught.value)


@pytest.mark.parametrize("outside", [1.0000002, 1.00005, -0.0000002])
def test_what_rounding_left_outside_is_clamped(outside: float) -> None:
    mask = check_mask(torch.tensor([[[0.5, outside]]]))
    assert mask.tolist() == [[[0.5, float(outside > 0)]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_step_of_half_precision_is_rounding_too(dtype: torch.dtype) -> None:
    above = torch.nextafter(torch.ones(1, 1, 1, dtype=dtype), torch.full((1, 1, 1), 2, dtype=dtype))
    assert check_mask(above).item() == 1


def test_an_antialiased_resize_overshoots_by_rounding_alone() -> None:
    """Of ones, at sizes where the weights of a cell do not add up to 1 exactly."""
    sizes = [(height, width) for height in range(3, 40, 4) for width in range(3, 40, 4)]
    resized = [
        torch.nn.functional.interpolate(torch.ones(1, 1, 64, 64), size=size, mode="bicubic", antialias=True)[0]
        for size in sizes
    ]
    assert max(mask.max().item() for mask in resized) > 1, "nothing overshot: this shows nothing"
    assert all(check_mask(mask).max() <= 1 for mask in resized)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.0, 1.0002), "from 0 to 1.0002"),
        ((-0.25, 1.0), "from -0.25 to 1"),
        ((0.0, 255.0), "from 0 to 255"),
        ((1.000101, 1.000101), "from 1.000101 to 1.000101"),
    ],
)
def test_a_real_overshoot_is_refused_with_its_value(values: tuple[float, float], text: str) -> None:
    with pytest.raises(BadInputError) as caught:
        check_mask(torch.tensor([[values]]))
    assert f"a mask with values {text}. Expected" in str(caught.value)
