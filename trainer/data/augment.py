"""Changes of a reference, so that the adapter cannot learn to copy it."""

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from ..config import AugmentConfig

_BLUR_WIDTH = 9  # pixels, of pictures about twice the encoder's input size
_BLUR_SIGMA = (0.5, 3.0)


def augment(
    image: Tensor, config: AugmentConfig, fill: tuple[float, float, float], generator: torch.Generator
) -> Tensor:
    """Change a reference at random.

    The functions are used, not torchvision's random classes: those draw from torch's global generator, which the
    threads of the cache command share.

    Args:
        image: (3, H, W), 0..1.
        fill: colour of the corners that a rotation leaves empty; the encoder's mean says nothing to it.

    Returns:
        (3, H', W'), 0..1, smaller where it is cropped.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    height, width = image.shape[-2:]
    side = (1 - uniform(0, config.crop_scale)) ** 0.5
    kept_height, kept_width = max(1, round(height * side)), max(1, round(width * side))
    top, left = round(uniform(0, height - kept_height)), round(uniform(0, width - kept_width))
    image = transforms.crop(image, top, left, kept_height, kept_width)
    if uniform(0, 1) < config.flip:
        image = transforms.horizontal_flip(image)
    if config.rotate:
        angle = uniform(-config.rotate, config.rotate)
        image = transforms.rotate(image, angle, InterpolationMode.BILINEAR, fill=list(fill))
    if config.color:
        for change in (transforms.adjust_brightness, transforms.adjust_contrast, transforms.adjust_saturation):
            image = change(image, uniform(1 - config.color, 1 + config.color))
    if uniform(0, 1) < config.gray:
        image = transforms.rgb_to_grayscale(image, num_output_channels=3)
    if uniform(0, 1) < config.blur:
        blur_width = min(_BLUR_WIDTH, 2 * min(kept_height, kept_width) - 1)  # it mirrors the edges, so no wider
        image = transforms.gaussian_blur(image, [blur_width, blur_width], [uniform(*_BLUR_SIGMA)] * 2)
    return image.clamp(0, 1)
