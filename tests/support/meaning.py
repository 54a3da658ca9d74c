"""Measures of what a picture shows, from features of `demo/judge.py`, and of where it changed."""

# N pictures, G pictures of a gallery, D feature width

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

CELL = 8  # pixels of a latent cell


def ranks(features: Tensor, gallery: Tensor, own: Tensor) -> Tensor:
    """How many pictures of the gallery are nearer than the nearest of a picture's own: 0 is a hit.

    Args:
        features: (N, D); gallery: (G, D); both of length 1.
        own: (N, G), true where a picture of the gallery is what was to be drawn.

    Returns:
        (N,), integer.
    """
    similarity = features @ gallery.T  # (N, G)
    best = similarity.masked_fill(~own, -2).amax(dim=1, keepdim=True)
    return ((similarity > best) & ~own).sum(dim=1)


def ridge_classifier(features: Tensor, labels: Tensor, penalty: float = 0.3) -> Tensor:
    """Least squares from features to one-hot labels, classes weighted equally.

    Of the held-out emoji it finds 93 % of styles and 80 % of categories; the nearest neighbour finds 83 and 76 %, the
    nearest mean of a class 85 and 64 %.

    Args:
        features: (N, D).
        labels: (N,), 0 to C - 1.
        penalty: on the squared weights.

    Returns:
        (D + 1, C), for `classify`.
    """
    targets = functional.one_hot(labels).double()
    weight = (1 / targets.sum(dim=0))[labels][:, None] * len(labels) / targets.shape[1]
    x = _with_one(features)
    shrink = penalty * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(x.T @ (weight * x) + shrink, x.T @ (weight * targets))


def classify(features: Tensor, classifier: Tensor) -> Tensor:
    """Labels (N,)."""
    return (_with_one(features) @ classifier).argmax(dim=1)


def leakage(changed: Tensor, plain: Tensor, mask: Tensor) -> float:
    """Mean change outside a mask over mean change inside it; the latent cells along its edge count on neither side.

    Args:
        changed, plain: (N, H, W, 3), with the masked adapter and without it.
        mask: (H, W), boolean; its edge lies on cell borders.
    """
    change = (changed - plain).abs().mean(dim=(0, 3))
    return float(change[_eroded(~mask)].mean() / change[_eroded(mask)].mean())


def half_mask(side: str, size: int) -> Tensor:
    """(size, size), true on the left or the right half."""
    columns = torch.arange(size) < size // 2
    return (columns if side == "left" else ~columns).expand(size, size)


def halves(pictures: Sequence[Image.Image], side: str) -> list[Image.Image]:
    """The left or right half of each on white, so that nothing but that half can be judged."""
    cut = []
    for picture in pictures:
        middle = picture.width // 2
        box = (0, 0, middle, picture.height) if side == "left" else (middle, 0, picture.width, picture.height)
        half = Image.new("RGB", picture.size, "white")
        half.paste(picture.crop(box), box[:2])
        cut.append(half)
    return cut


def psnr(one: Tensor, other: Tensor) -> float:
    """Decibels between pictures of 0..1."""
    return float(-10 * (one.double() - other.double()).square().mean().log10())


def _with_one(features: Tensor) -> Tensor:
    return functional.pad(features.double(), (0, 1), value=1.0)


def _eroded(mask: Tensor) -> Tensor:
    """Without the pixels that have one outside the mask within a cell's width; the picture's own border is no edge."""
    outside = (~mask).float()[None, None]
    return functional.max_pool2d(outside, 2 * CELL + 1, stride=1, padding=CELL)[0, 0] == 0
