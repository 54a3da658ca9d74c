"""What the tests of the dropped nodes share: the negative image they made, and when two MODELs compute the same."""

from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from legacy.apply_fixtures import bare, error, forward

ROUNDING = 1e-5  # relative: features are encoded in batches of other sizes


def noised(image: Tensor, noise: float) -> Tensor:
    """The negative image as huggingface/diffusers#6318 and the README of January 2024 describe it."""
    side = min(image.shape[1:3])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        steps = (
            v2.CenterCrop(side),
            v2.Resize((224, 224), interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.ElasticTransform(alpha=75.0, sigma=noise * 3.5),
            v2.RandomVerticalFlip(p=1.0),
            v2.RandomHorizontalFlip(p=1.0),
        )
        warped = v2.Compose(steps)(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return (warped + (0.25 * (1 - noise) + 0.05) * torch.randn_like(warped)).clamp(0, 1)


def assert_same(given: Any, wanted: Any, model: Any, **settings: Any) -> None:
    """Both patched MODELs compute the same, and not what the model does without."""
    expected = forward(wanted, **settings)
    assert error(forward(given, **settings), expected) < ROUNDING
    assert error(bare(model, **settings), expected) > 300 * ROUNDING, "the adapter does nothing here"
