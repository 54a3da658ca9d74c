"""Contrast-adaptive sharpening against the formula, pixel by pixel."""

import math

import pytest
import torch
from torch import Tensor

from ipadapter_core.encoder.sharpen import sharpen


def plain(picture: list[list[float]], amount: float) -> list[list[float]]:
    height, width = len(picture), len(picture[0])

    def at(y: int, x: int) -> float:
        return picture[y][x] if 0 <= y < height and 0 <= x < width else 0.0

    def pixel(y: int, x: int) -> float:
        ring = [at(y - 1, x), at(y + 1, x), at(y, x - 1), at(y, x + 1)]
        cross = [*ring, at(y, x)]
        diagonal = [at(y + dy, x + dx) for dy in (-1, 1) for dx in (-1, 1)]
        low, high = min(cross) + min(diagonal), max(cross) + max(diagonal)
        if high == 0:
            return 0.0
        amplitude = math.sqrt(min(max(min(low, 2 - high) / high, 0), 1))
        weight = -amplitude * (amount * (1 / 5 - 1 / 8) + 1 / 8)
        return min(max((weight * sum(ring) + at(y, x)) / (1 + 4 * weight), 0), 1)

    return [[pixel(y, x) for x in range(width)] for y in range(height)]


def random_pictures() -> Tensor:
    return torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("amount", [0.0, 0.35, 1.0])
def test_formula(amount: float):
    pictures = 0.3 + 0.4 * random_pictures()
    pictures[0, 0, :4, :4] = 0
    expected = torch.tensor([[plain(channel, amount) for channel in picture] for picture in pictures.tolist()])
    assert torch.allclose(sharpen(pictures, amount), expected.double(), atol=1e-6)


def test_flat_areas_stay_and_edges_rise():
    pictures = torch.full((1, 1, 7, 7), 0.5)
    assert torch.allclose(sharpen(pictures, 1.0), pictures, atol=1e-6)
    pictures[..., 3:] = 0.6
    sharpened = sharpen(pictures, 1.0)[0, 0, 3]
    assert sharpened[3] > 0.6
    assert sharpened[2] < 0.5
