"""Noise in place of a reference, against the formulas stated for IPAdapter_plus."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.transforms import ElasticTransform, RandomHorizontalFlip, RandomVerticalFlip
from torchvision.transforms import functional as pictures

from ipadapter_core.errors import BadInputError
from ipadapter_core.legacy.noise import NOISES, make_noise


def random_image(*shape: int) -> Tensor:
    """An IMAGE of (batch, height, width)."""
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(0))


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
    """The flips draw a number each; the noise falls on channels-first memory, on which torch draws other numbers."""
    warped = ElasticTransform(alpha=75.0, sigma=(1 - s) * 3.5)(x.permute(0, 3, 1, 2).contiguous())
    flipped = RandomHorizontalFlip(p=1.0)(RandomVerticalFlip(p=1.0)(warped))
    assert flipped.is_contiguous()
    seen = flipped.permute(0, 2, 3, 1)
    n = 0.75 * s * torch.randn_like(seen)
    return seen * (1 - n) + n


FORMULAS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "fade": fade,
    "dissolve": dissolve,
    "gaussian": gaussian,
    "shuffle": shuffle,
}


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("size", [(2, 80, 60), None])
def test_noise(kind: str, strength: float, size: tuple[int, ...] | None) -> None:
    image = None if size is None else random_image(*size)
    x = torch.zeros(1, 224, 224, 3) if image is None else square(image)
    torch.manual_seed(int(x.sum()) % 1000000007)  # the global generator, as it was done there
    expected = FORMULAS[kind](x, strength).clamp(0, 1)
    torch.manual_seed(5)
    noise = make_noise(kind, strength, 0, image)
    torch.testing.assert_close(noise, expected)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))  # the global generator was not touched


@pytest.mark.parametrize(("blur", "kernel"), [(1, 1), (4, 5), (7, 7), (32, 33)])
def test_blur(blur: int, kernel: int) -> None:
    image = random_image(1, 50, 50)
    sharp = make_noise("fade", 0.5, 0, image)
    blurred = make_noise("fade", 0.5, blur, image)
    expected = pictures.gaussian_blur(sharp.permute(0, 3, 1, 2), kernel)
    torch.testing.assert_close(blurred, expected.permute(0, 2, 3, 1))


def test_no_noise_is_the_picture() -> None:
    image = random_image(1, 64, 64)
    noise = make_noise("dissolve", 0.0, 0, image)
    torch.testing.assert_close(noise, square(image).clamp(0, 1))


def test_every_noise_is_tested_and_no_other_known() -> None:
    assert set(FORMULAS) == set(NOISES)
    with pytest.raises(BadInputError, match=r"noise type 'snow'.*fade, dissolve, gaussian, shuffle"):
        make_noise("snow", 1.0, 0, None)
