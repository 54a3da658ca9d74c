"""Noise and Prep Image, against the formulas of the facts page, section 9."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import ElasticTransform
from torchvision.transforms import functional as pictures

from legacy.running import outputs, random_image

PREP = {"interpolation": "LANCZOS", "crop_position": "top", "sharpening": 0.0}


def square(image: Tensor) -> Tensor:
    """Centre-cropped and bicubic-resized to 224."""
    side = min(image.shape[1:3])
    top, left = ((length - side) // 2 for length in image.shape[1:3])
    middle = image[:, top : top + side, left : left + side].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(middle, size=(224, 224), mode="bicubic", antialias=True)
    return resized.permute(0, 2, 3, 1)


def fade(x: Tensor, s: float) -> Tensor:
    return x * (1 - s) + torch.rand(x.shape) * s


def dissolve(x: Tensor, s: float) -> Tensor:
    chosen = (torch.rand(x.shape) < s).float()
    return torch.rand(x.shape) * chosen + x * (1 - chosen)


def gaussian(x: Tensor, s: float) -> Tensor:
    return x + torch.randn(x.shape) * s


def shuffle(x: Tensor, s: float) -> Tensor:
    warped = (
        ElasticTransform(alpha=75.0, sigma=(1 - s) * 3.5)(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).flip(1).flip(2)
    )
    n = 0.75 * s * torch.randn(x.shape)
    return warped * (1 - n) + n


NOISES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "fade": fade,
    "dissolve": dissolve,
    "gaussian": gaussian,
    "shuffle": shuffle,
}


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("size", [(2, 80, 60), None])
def test_noise(base_directory: Path, kind: str, strength: float, size: tuple[int, ...] | None) -> None:
    image = None if size is None else random_image(*size)
    x = torch.zeros(1, 224, 224, 3) if image is None else square(image)
    torch.manual_seed(int(x.sum()) % 1000000007)  # the global generator, as it was done there
    expected = NOISES[kind](x, strength).clamp(0, 1)
    torch.manual_seed(5)
    (noise,) = outputs("IPAdapterNoise", type=kind, strength=strength, blur=0, image_optional=image)
    torch.testing.assert_close(noise, expected)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))  # the global generator was not touched


@pytest.mark.parametrize(("blur", "kernel"), [(1, 1), (4, 5), (7, 7), (32, 33)])
def test_blur(base_directory: Path, blur: int, kernel: int) -> None:
    image = random_image(1, 50, 50)
    (sharp,) = outputs("IPAdapterNoise", type="fade", strength=0.5, blur=0, image_optional=image)
    (blurred,) = outputs("IPAdapterNoise", type="fade", strength=0.5, blur=blur, image_optional=image)
    expected = pictures.gaussian_blur(sharp.permute(0, 3, 1, 2), kernel)
    torch.testing.assert_close(blurred, expected.permute(0, 2, 3, 1))


def test_no_noise_is_the_picture(base_directory: Path) -> None:
    image = random_image(1, 64, 64)
    (noise,) = outputs("IPAdapterNoise", type="dissolve", strength=0.0, blur=0, image_optional=image)
    torch.testing.assert_close(noise, square(image).clamp(0, 1))


def coded(height: int, width: int) -> Tensor:
    """Every pixel says where it lies: red is its row, green its column, in 1/255."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, 255)], dim=-1)[None] / 255


def corners(prepared: Tensor) -> list[list[int]]:
    return [(prepared[0, y, x] * 255).round().int().tolist()[:2] for y, x in ((0, 0), (-1, -1))]


@pytest.mark.parametrize(
    ("size", "position", "expected"),
    [
        ((224, 250), "top", [[0, 13], [223, 236]]),
        ((224, 250), "left", [[0, 0], [223, 223]]),
        ((224, 250), "right", [[0, 26], [223, 249]]),
        ((224, 250), "center", [[0, 13], [223, 236]]),
        ((250, 224), "top", [[0, 0], [223, 223]]),
        ((250, 224), "bottom", [[26, 0], [249, 223]]),
        ((250, 224), "left", [[13, 0], [236, 223]]),
        ((250, 224), "center", [[13, 0], [236, 223]]),
    ],
)
def test_crop(base_directory: Path, size: tuple[int, int], position: str, expected: list[list[int]]) -> None:
    (prepared,) = outputs("PrepImageForClipVision", image=coded(*size), **{**PREP, "crop_position": position})
    assert prepared.shape == (1, 224, 224, 3)
    assert corners(prepared) == expected


@pytest.mark.parametrize("size", [(224, 112), (112, 224)])
def test_pad_puts_black_on_both_ends(base_directory: Path, size: tuple[int, int]) -> None:
    image = torch.full((1, *size, 3), 0.6)
    (prepared,) = outputs("PrepImageForClipVision", image=image, **{**PREP, "crop_position": "pad"})
    along = prepared[0, 112, :, 0] if size[1] < size[0] else prepared[0, :, 112, 0]
    assert along[:56].eq(0).all()
    assert along[168:].eq(0).all()
    assert torch.allclose(along[56:168], torch.tensor(0.6), atol=1 / 255)


@pytest.mark.parametrize("interpolation", ["LANCZOS", "BICUBIC", "HAMMING", "BILINEAR", "BOX", "NEAREST"])
def test_resampling_is_pillows(base_directory: Path, interpolation: str) -> None:
    image = random_image(2, 90, 90)
    (prepared,) = outputs("PrepImageForClipVision", image=image, **{**PREP, "interpolation": interpolation})
    resampling = getattr(Image.Resampling, interpolation)
    for given, made in zip(image, prepared, strict=True):
        picture = Image.fromarray((given.numpy() * 255).round().astype(np.uint8))
        expected = np.asarray(picture.resize((224, 224), resampling)) / 255
        assert np.allclose(made.numpy(), expected, atol=1e-6)


def test_sharpening(base_directory: Path) -> None:
    """The formula in one pixel; `tests/unit/test_sharpen.py` has all of it."""
    image = random_image(1, 224, 224)
    plain, sharp = (
        outputs("PrepImageForClipVision", image=image, **{**PREP, "sharpening": amount})[0][0, :, :, 0]
        for amount in (0.0, 0.4)
    )
    window = plain[99:102, 49:52]
    cross, diagonal = window.flatten()[[1, 3, 4, 5, 7]], window.flatten()[[0, 2, 6, 8]]
    low, high = cross.min() + diagonal.min(), cross.max() + diagonal.max()
    weight = -(torch.minimum(low, 2 - high) / high).clamp(0, 1).sqrt() * (0.4 * (1 / 5 - 1 / 8) + 1 / 8)
    expected = (weight * (cross.sum() - window[1, 1]) + window[1, 1]) / (1 + 4 * weight)
    torch.testing.assert_close(sharp[100, 50], expected.clamp(0, 1))
