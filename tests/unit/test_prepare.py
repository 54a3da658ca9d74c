"""References cut out and squared: the part that was asked for, in the shape that was asked for."""

import pytest
import torch
from torch import Tensor

from ipadapter_core.box import Box
from ipadapter_core.encoder.pixels import PixelFormat, encoder_pixels
from ipadapter_core.encoder.prepare import COLOURS, box_of_mask, part_of, sharpened, shown, squared, widened

CLIP = PixelFormat(32, (0.48, 0.45, 0.4), (0.26, 0.26, 0.27))


def picture(height: int = 60, width: int = 90) -> Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        (Box(), slice(0, 60), slice(0, 90)),
        (Box(1 / 3, 0.5, 2 / 3, 1.0), slice(30, 60), slice(30, 60)),
        (Box(0.999, 0.999, 1.0, 1.0), slice(59, 60), slice(89, 90)),
        (Box(0.0, 0.0, 1e-4, 1e-4), slice(0, 1), slice(0, 1)),
    ],
)
def test_a_part_has_every_pixel_its_box_touches(box: Box, rows: slice, columns: slice) -> None:
    assert torch.equal(part_of(picture(), box), picture()[rows, columns])


def test_a_mask_is_cut_out_whole_and_without_more() -> None:
    mask = torch.zeros(60, 90)
    mask[10:20, 30:45] = 1
    assert part_of(picture(), box_of_mask(mask)).shape == (10, 15, 3)
    assert torch.equal(part_of(picture(), box_of_mask(mask)), picture()[10:20, 30:45])
    with pytest.raises(ValueError, match="What to do: invert it"):
        box_of_mask(torch.zeros(4, 4))


def test_a_margin_ends_with_the_picture() -> None:
    wide = widened(Box(0.4, 0.4, 0.6, 0.6), 0.5)
    assert (wide.left, wide.top, wide.right, wide.bottom) == pytest.approx((0.3, 0.3, 0.7, 0.7))
    assert widened(Box(0.1, 0.0, 0.6, 1.0), 1.0) == Box(0.0, 0.0, 1.0, 1.0)
    flat = widened(Box(0.25, 0.375, 0.75, 0.625), 0.5)
    assert flat == Box(0.0, 0.25, 1.0, 0.75), "by its own height, not by its width"


@pytest.mark.parametrize("fit", ["center", "pad", "stretch"])
def test_an_encoder_sees_in_the_square_what_it_sees_in_the_picture(fit: str) -> None:
    square = squared(picture(), CLIP.size, fit, "black")
    seen = encoder_pixels(square[None], CLIP, "center")
    assert square.shape == (32, 32, 3)
    torch.testing.assert_close(seen, encoder_pixels(picture()[None], CLIP, fit, padding="black"))
    torch.testing.assert_close(shown(seen, CLIP)[0], square)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_pad_is_of_the_colour_that_was_asked_for(colour: str) -> None:
    square = squared(picture(20, 60), 30, "pad", colour)
    assert torch.equal(square[:8], torch.full((8, 30, 3), COLOURS[colour]))
    assert square[12:18].std() > 0.05


def test_sharpening_begins_at_nothing() -> None:
    assert sharpened(picture(), 0.0) is not None
    assert torch.equal(sharpened(picture(), 0.0), picture())
    soft = picture(8, 8).movedim(-1, 0)[None]
    soft = torch.nn.functional.interpolate(soft, size=(64, 64), mode="bilinear")[0].movedim(0, -1)
    contrast = [(sharpened(soft, amount)[1:] - sharpened(soft, amount)[:-1]).abs().mean() for amount in (0, 0.2, 1)]
    assert contrast == sorted(contrast)
    assert contrast[0] < contrast[1] < contrast[2]
