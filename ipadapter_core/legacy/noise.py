"""Negative images made of noise."""

# B pictures, H W their size

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms import Compose, ElasticTransform, RandomHorizontalFlip, RandomVerticalFlip
from torchvision.transforms import functional as pictures

from ..encoder.pixels import check_image
from ..errors import BadInputError, one_of

SIDE = 224  # pixels, of what comes out
_SEEDS = 1_000_000_007
_ELASTIC_ALPHA, _ELASTIC_SIGMA = 75.0, 3.5
_SHUFFLE_NOISE = 0.75  # of the strength
_FLIPS = Compose([RandomVerticalFlip(1.0), RandomHorizontalFlip(1.0)])  # always, but each draws a random number first
_FORMER_SEED, _FORMER_MOST, _FORMER_LEAST = 0, 0.25, 0.05  # of the normal noise, as a standard deviation


def _fade(x: Tensor, strength: float) -> Tensor:
    return x * (1 - strength) + torch.rand_like(x) * strength


def _dissolve(x: Tensor, strength: float) -> Tensor:
    is_replaced = torch.rand_like(x) < strength
    return torch.where(is_replaced, torch.rand_like(x), x)


def _gaussian(x: Tensor, strength: float) -> Tensor:
    return x + torch.randn_like(x) * strength


def _warp(x: Tensor, smoothness: float) -> Tensor:
    """Pictures (B, H, W, 3) warped and flipped both ways."""
    elastic = ElasticTransform(alpha=_ELASTIC_ALPHA, sigma=smoothness * _ELASTIC_SIGMA)
    # A view of channels-first memory, as it comes out: torch draws other numbers for it than for contiguous tensors.
    warped: Tensor = _FLIPS(elastic(x.movedim(-1, 1))).contiguous().movedim(1, -1)
    return warped


def _shuffle(x: Tensor, strength: float) -> Tensor:
    x = _warp(x, 1 - strength)
    noise = torch.randn_like(x) * (_SHUFFLE_NOISE * strength)
    return x * (1 - noise) + noise


NOISES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "fade": _fade,
    "dissolve": _dissolve,
    "gaussian": _gaussian,
    "shuffle": _shuffle,
}


def make_noise(kind: str, strength: float, blur: int, image: Tensor | None) -> Tensor:
    """Noise over the middle square of pictures, or over black.

    Args:
        kind: a key of `NOISES`.
        strength: 0 leaves the picture, 1 leaves nothing of it (gaussian and shuffle: something).
        blur: size of a gaussian kernel in pixels; even ones are made odd, 0 is none.
        image: (B, H, W, 3), 0..1.

    Returns:
        (B, 224, 224, 3), 0..1. The seed follows from the picture's content.

    Raises:
        BadInputError: an unknown kind, or a strength or blur outside its range.
    """
    add_noise = one_of(kind, NOISES, "noise type")
    _check_range("strength", strength, 1)
    _check_range("blur", blur, SIDE)
    # Channels last, as pictures are in ComfyUI: the order in which random numbers fall on them.
    x = torch.zeros(1, SIDE, SIDE, 3) if image is None else _square(check_image(image).cpu())
    with torch.random.fork_rng(devices=[]):  # the global generator is the user's: it goes on as if nothing was drawn
        torch.default_generator.manual_seed(int(x.sum().item()) % _SEEDS)
        x = add_noise(x, strength).clamp(0, 1)
    if blur:
        x = pictures.gaussian_blur(x.movedim(-1, 1), blur + 1 - blur % 2).movedim(1, -1)
    return x.contiguous()


def _check_range(what: str, value: float, most: float) -> None:
    if not 0 <= value <= most:  # the kernels that warp and blur grow with it, or have no size
        raise BadInputError(f"{what} {value:g}", expected=f"0 to {most}", action=f"set {what} within its range")


def _square(image: Tensor) -> Tensor:
    x: Tensor = pictures.center_crop(image.movedim(-1, 1), [min(image.shape[1:3])] * 2)
    x = pictures.resize(x, [SIDE, SIDE], pictures.InterpolationMode.BICUBIC, antialias=True)
    return x.movedim(1, -1).contiguous()


def former_noise(images: Sequence[Tensor], clarity: float) -> Tensor:
    """The negative image that apply nodes made by themselves before March 2024: references warped, flipped, noised.

    The numbers are those that diffusers issue 6318 states.

    Args:
        images: each (B, H, W, 3), 0..1.
        clarity: above 0, 1 at most; the less, the less is left to recognise.

    Returns:
        All of them, (B, 224, 224, 3), 0..1. The same for the same pictures.
    """
    _check_range("noise", clarity, 1)
    x = torch.cat([_square(check_image(image).cpu()) for image in images])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(_FORMER_SEED)
        x = _warp(x, clarity)
        x = x + torch.randn_like(x) * (_FORMER_MOST * (1 - clarity) + _FORMER_LEAST)
    return x.clamp(0, 1).contiguous()
