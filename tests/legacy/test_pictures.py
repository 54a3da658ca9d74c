"""Noise and Prep Image as nodes; `tests/unit/test_noise.py` and `test_preparation.py` have the formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as pictures

from legacy.running import outputs, random_image
from support import comfy_host

PREP = {"interpolation": "LANCZOS", "crop_position": "top", "sharpening": 0.0}


@pytest.mark.parametrize("kind", ["fade", "dissolve", "gaussian", "shuffle"])
@pytest.mark.parametrize("is_connected", [True, False])
def test_noise(base_directory: Path, kind: str, is_connected: bool) -> None:
    image = {"image_optional": random_image(2, 80, 60)} if is_connected else {}
    (noise,) = outputs("IPAdapterNoise", type=kind, strength=0.3, blur=4, **image)
    make_noise = comfy_host.pack("ipadapter_core.legacy.noise").make_noise
    assert torch.equal(noise, make_noise(kind, 0.3, 4, image.get("image_optional")))
    assert noise.shape == (2 if is_connected else 1, 224, 224, 3)


@pytest.mark.parametrize(("position", "rows"), [("top", slice(0, 90)), ("bottom", slice(20, 110))])
@pytest.mark.parametrize("interpolation", ["LANCZOS", "BICUBIC", "HAMMING", "BILINEAR", "BOX", "NEAREST"])
def test_resampling_is_pillows(base_directory: Path, interpolation: str, position: str, rows: slice) -> None:
    image = random_image(2, 110, 90)
    widgets = {"interpolation": interpolation, "crop_position": position, "sharpening": 0.0}
    (prepared,) = outputs("PrepImageForClipVision", image=image, **widgets)
    resampling = getattr(Image.Resampling, interpolation)
    for given, made in zip(image, prepared, strict=True):
        picture = pictures.to_pil_image(given[rows].movedim(-1, 0))  # bytes cut off, not rounded
        expected = np.asarray(picture.resize((224, 224), resampling)) / 255
        assert np.allclose(made.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(224, 113), (113, 224), (113, 150)])
def test_pad_adds_the_same_on_both_ends(base_directory: Path, size: tuple[int, int]) -> None:
    """So that an odd difference stays one pixel off square, which the resize evens out."""
    image = random_image(1, *size)
    (prepared,) = outputs("PrepImageForClipVision", image=image, **{**PREP, "crop_position": "pad"})
    black = abs(size[0] - size[1]) // 2
    across, along = (0, black) if size[0] < size[1] else (black, 0)
    framed = pictures.pad(image[0].movedim(-1, 0), [across, along, across, along])
    expected = pictures.to_pil_image(framed).resize((224, 224), Image.Resampling.LANCZOS)
    assert np.allclose(prepared[0].numpy(), np.asarray(expected) / 255, atol=1e-6)


def test_an_unknown_interpolation_is_refused(base_directory: Path) -> None:
    with pytest.raises(ValueError, match=r"interpolation 'SINC'.*LANCZOS, BICUBIC"):
        outputs("PrepImageForClipVision", image=random_image(1, 9, 9), **{**PREP, "interpolation": "SINC"})


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
