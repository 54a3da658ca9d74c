"""A reference becomes the pixels its encoder was trained on, whatever its size, shape, channels and mask."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import interpolate

from ipadapter_core.encoder.pixels import PixelFormat, check_image, encoder_pixels, no_image_pixels, noise_pixels
from ipadapter_core.errors import BadInputError
from ipadapter_core.file.spec import CROPS, Negative

FORMATS = Path(__file__).parents[2] / "docs" / "formats.md"
CLIP = PixelFormat(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SMALL = PixelFormat(16, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
PLAIN = PixelFormat(16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def smooth(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    """A picture without detail, of 8-bit values."""
    coarse = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    picture = interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)
    return ((255 * picture).round() / 255).movedim(1, -1)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 3), st.sampled_from(CROPS))
def test_every_picture_becomes_the_encoder_s_square(height: int, width: int, batch: int, crop: str) -> None:
    pixels = encoder_pixels(torch.rand(batch, height, width, 3), SMALL, crop)
    assert pixels.shape == (batch, 3, 16, 16)
    assert pixels.isfinite().all()


@pytest.mark.parametrize("crop", CROPS)
def test_a_picture_of_the_right_size_is_only_normalised(crop: str) -> None:
    picture = smooth(16, 16)
    mean, std = torch.tensor(SMALL.mean), torch.tensor(SMALL.std)
    wanted = ((picture - mean) / std).movedim(-1, 1)
    torch.testing.assert_close(encoder_pixels(picture, SMALL, crop), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize(("height", "width"), [(40, 20), (20, 40)])
def test_each_picture_of_a_batch_is_treated_alone(crop: str, height: int, width: int) -> None:
    pictures = torch.rand(3, height, width, 3)
    alone = torch.cat([encoder_pixels(picture[None], SMALL, crop) for picture in pictures])
    torch.testing.assert_close(encoder_pixels(pictures, SMALL, crop), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("crop", CROPS)
def test_pixels_are_those_of_an_8_bit_picture(crop: str) -> None:
    edges = (torch.rand(1, 40, 24, 3) > 0.5).float()  # bicubic resampling overshoots at them
    levels = 255 * encoder_pixels(edges, PLAIN, crop)
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert levels.min() >= 0
    assert levels.max() <= 255


@pytest.mark.parametrize("crop", CROPS)
def test_detail_too_fine_for_the_encoder_becomes_grey(crop: str) -> None:
    stripes = (torch.arange(160) // 2 % 2).float()[None, None, :, None].expand(1, 160, 160, 3)
    assert (encoder_pixels(stripes, PLAIN, crop) - 0.5).abs().max() < 0.15


@pytest.mark.parametrize("is_upright", [True, False])
def test_center_cuts_the_long_sides_and_stretch_keeps_them(is_upright: bool) -> None:
    picture = torch.zeros(1, 16, 48, 3)
    picture[:, :, 16:32] = 1
    if is_upright:
        picture = picture.transpose(1, 2)
    inside = encoder_pixels(picture, PLAIN, "center")
    assert (inside[..., 2:-2, 2:-2] == 1).all()
    stretched = encoder_pixels(picture, PLAIN, "stretch")
    column = (stretched.mT if is_upright else stretched)[0, 0, 8]
    assert column[0] == 0
    assert column[8] == 1
    assert column[-1] == 0


@pytest.mark.parametrize(
    ("height", "width", "filled"), [(8, 16, slice(4, 12)), (4, 16, slice(6, 10)), (30, 60, slice(4, 12))]
)
@pytest.mark.parametrize("is_upright", [True, False])
def test_pad_fills_the_short_sides_with_exact_zeros(height: int, width: int, filled: slice, is_upright: bool) -> None:
    picture = torch.ones(1, width, height, 3) if is_upright else torch.ones(1, height, width, 3)
    pixels = encoder_pixels(picture, SMALL, "pad")
    rows = (pixels.mT if is_upright else pixels)[0]
    inside = torch.zeros(16, dtype=torch.bool)
    inside[filled] = True
    assert (rows[:, ~inside] == 0).all()
    wanted = ((1 - torch.tensor(SMALL.mean)) / torch.tensor(SMALL.std))[:, None, None]
    torch.testing.assert_close(rows[:, inside], wanted.expand_as(rows[:, inside]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_upright", [True, False])
def test_black_padding_is_a_black_picture_around_the_same_one(is_upright: bool) -> None:
    picture = smooth(16, 8) if is_upright else smooth(8, 16)
    black = torch.zeros(1, 16, 16, 3)
    inside = (..., slice(4, 12)) if is_upright else (..., slice(4, 12), slice(None))
    wanted, usual = encoder_pixels(black, SMALL, "pad"), encoder_pixels(picture, SMALL, "pad")
    wanted[inside] = usual[inside]
    assert torch.equal(encoder_pixels(picture, SMALL, "pad", padding="black"), wanted)
    assert torch.equal(encoder_pixels(picture, SMALL, "pad", padding="mean"), usual)
    assert not torch.equal(wanted, usual)


@pytest.mark.parametrize("crop", CROPS)
def test_a_full_mask_changes_nothing_and_an_empty_one_leaves_the_mean_colour(crop: str) -> None:
    picture = torch.rand(2, 24, 40, 3)
    plain = encoder_pixels(picture, SMALL, crop)
    for size in ((24, 40), (7, 5), (64, 64)):
        torch.testing.assert_close(encoder_pixels(picture, SMALL, crop, torch.ones(1, *size)), plain)
        assert not encoder_pixels(picture, SMALL, crop, torch.zeros(1, *size)).any()


@pytest.mark.parametrize("crop", CROPS)
def test_a_mask_multiplies_what_it_lies_on(crop: str) -> None:
    picture, mask = torch.rand(2, 32, 32, 3), torch.ones(2, 32, 32)
    mask[0, :, :16] = 0
    mask[1, 16:] = 0.5
    plain, masked = encoder_pixels(picture, SMALL, crop), encoder_pixels(picture, SMALL, crop, mask)
    assert (masked[0, :, :, :6].abs() < 1e-6).all()
    torch.testing.assert_close(masked[0, :, :, 10:], plain[0, :, :, 10:])
    torch.testing.assert_close(masked[1, :, :6], plain[1, :, :6])
    torch.testing.assert_close(masked[1, :, 10:], 0.5 * plain[1, :, 10:])


@pytest.mark.parametrize("crop", CROPS)
def test_a_mask_of_another_size_lies_on_the_same_part_of_the_picture(crop: str) -> None:
    picture, mask = torch.rand(1, 24, 48, 3), torch.ones(1, 24, 48)
    mask[:, :12] = 0
    large = mask.repeat_interleave(3, 1).repeat_interleave(3, 2)
    expected = encoder_pixels(picture, SMALL, crop, mask)
    torch.testing.assert_close(encoder_pixels(picture, SMALL, crop, large), expected)


@pytest.mark.parametrize(("height", "width"), [(300, 421), (512, 224), (224, 224), (150, 100), (777, 768), (768, 777)])
def test_center_equals_the_processor_encoders_are_trained_with(height: int, width: int) -> None:
    from PIL import Image
    from transformers import CLIPImageProcessor

    picture = smooth(height, width, seed=height)
    as_pil = Image.fromarray((255 * picture[0]).round().byte().numpy())
    wanted = CLIPImageProcessor()(images=as_pil, return_tensors="pt")["pixel_values"]
    std = torch.tensor(CLIP.std)[:, None, None]
    difference = (encoder_pixels(picture, CLIP, "center") - wanted) * std * 255
    assert difference.abs().max() < 2.5


def test_grey_is_repeated_and_alpha_dropped() -> None:
    grey, coloured = torch.rand(2, 5, 7, 1), torch.rand(2, 5, 7, 4)
    assert torch.equal(check_image(grey), grey.repeat(1, 1, 1, 3))
    assert torch.equal(check_image(coloured), coloured[..., :3])


def test_a_single_picture_may_come_without_batch() -> None:
    picture = torch.rand(5, 7, 3)
    assert torch.equal(check_image(picture), picture[None])


def test_values_slightly_outside_are_clipped() -> None:
    picture = torch.tensor([-0.1, 0.5, 1.1]).reshape(1, 1, 1, 3)
    assert check_image(picture).flatten().tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_pictures_of_every_dtype_become_float32(dtype: torch.dtype) -> None:
    assert check_image(torch.rand(1, 2, 2, 3).to(dtype)).dtype == torch.float32


@pytest.mark.parametrize("crop", CROPS)
def test_one_pixel_becomes_its_colour(crop: str) -> None:
    pixels = encoder_pixels(check_image(torch.full((1, 1, 1, 3), 0.2)), PLAIN, crop)
    torch.testing.assert_close(pixels, torch.full((1, 3, 16, 16), 0.2))


@pytest.mark.parametrize(
    ("image", "phrase"),
    [
        (None, "no image"),
        ([torch.rand(1, 5, 7, 3)], "a list in place of an image"),
        (torch.rand(5, 7), "an image of shape [5, 7]"),
        (torch.rand(1, 5, 7, 2), "an image of shape [1, 5, 7, 2]"),
        (torch.rand(1, 4, 64, 64), "an image of shape [1, 4, 64, 64]"),
        (torch.rand(1, 1, 5, 7, 3), "an image of shape [1, 1, 5, 7, 3]"),
        (torch.rand(0, 5, 7, 3), "an image of shape [0, 5, 7, 3]"),
        (torch.rand(1, 0, 7, 3), "an image of shape [1, 0, 7, 3]"),
        (torch.full((1, 2, 2, 3), float("nan")), "an image with NaN or infinite values"),
        (torch.full((1, 2, 2, 3), float("inf")), "an image with NaN or infinite values"),
    ],
)
def test_what_is_no_picture_says_why(image: object, phrase: str) -> None:
    with pytest.raises(BadInputError) as caught:
        check_image(image)
    assert str(caught.value).startswith(f"Found: {phrase}. Expected: ")


def test_an_unknown_crop_is_refused() -> None:
    with pytest.raises(BadInputError, match="crop 'middle'\\. Expected: one of center, pad, stretch"):
        encoder_pixels(torch.rand(1, 5, 7, 3), SMALL, "middle")


def seen(pixels: Tensor, pixel_format: PixelFormat) -> Tensor:
    """Normalised pixels (B, 3, S, S) as values of a picture file, 0..255."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (pixel_format.mean, pixel_format.std))
    return 255 * (pixels * std + mean)


def test_noise_is_a_picture_of_8_bits_with_a_brightness_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    pictures = seen(torch.cat([noise_pixels(CLIP, generator) for _ in range(200)]), CLIP)
    torch.testing.assert_close(pictures, pictures.round(), rtol=0, atol=1e-3)
    assert pictures.min() > -1e-3
    brightest = pictures.amax(dim=(1, 2, 3))
    # uniform: a tenth is in each tenth, and within a picture the mean is half of the brightest
    counts = torch.histc(brightest, 10, 0, 255)
    assert counts.min() >= 5
    assert counts.max() <= 40
    torch.testing.assert_close(pictures.mean(dim=(1, 2, 3)), brightest / 2, rtol=0.02, atol=0.6)


def test_the_noise_that_stands_for_no_image_is_one_and_the_same_picture(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    picture = seen(no_image_pixels(Negative.NOISE, CLIP), CLIP)
    assert torch.equal(torch.get_rng_state(), before)
    assert picture.shape == (1, 3, 224, 224)
    code = re.search(r"```python\n(noise = .*?)```", FORMATS.read_text(encoding="utf-8"), re.DOTALL)
    assert code, "docs/formats.md says how others make it"
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP.mean, CLIP.std))
    (tmp_path / "shown.py").write_text(code[1], encoding="utf-8")
    scope = runpy.run_path(str(tmp_path / "shown.py"), {"torch": torch, "size": 224, "mean": mean, "std": std})
    torch.testing.assert_close(picture, seen(scope["pixels"], CLIP), rtol=0, atol=1e-3)
    assert 126 < picture.max() < 129
    assert not no_image_pixels(Negative.ZERO_PIXELS, CLIP).any()
