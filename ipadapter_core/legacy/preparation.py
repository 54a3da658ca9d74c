"""References, and masks that belong to them, as the squares an image encoder sees."""

# B pictures, M masks, H W their size

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import center_crop

from ..encoder.pixels import check_image
from ..encoder.sharpen import sharpen
from ..errors import one_of

# Pictures (B, C, H, W), a width and a height, to pictures of that size: the host knows how it resamples.
Resize = Callable[[Tensor, int, int], Tensor]

SIDE = 224  # pixels
PAD = "pad"
# What is left of the picture above and left of the square, out of the room there is; the other axis is centred.
POSITIONS: dict[str, tuple[Callable[[int], int], Callable[[int], int]]] = {
    "top": (lambda room: 0, lambda room: room // 2),
    "bottom": (lambda room: room, lambda room: room // 2),
    "left": (lambda room: room // 2, lambda room: 0),
    "right": (lambda room: room // 2, lambda room: room),
    "center": (lambda room: room // 2, lambda room: room // 2),
}
CROP_POSITIONS = (*POSITIONS, PAD)


def prepare(image: Tensor, crop_position: str, sharpening: float, resize: Resize) -> Tensor:
    """Square pictures of 224 pixels.

    Args:
        image: (B, H, W, 3), 0..1.
        crop_position: one of `CROP_POSITIONS`; "pad" puts equal black bars in place of a cut.
        sharpening: 0..1; 0 is none.

    Returns:
        (B, 224, 224, 3), 0..1.

    Raises:
        BadInputError: an unknown position.
    """
    position = one_of(crop_position, CROP_POSITIONS, "crop position")
    x = resize(_square(check_image(image).movedim(-1, 1), position), SIDE, SIDE)
    if sharpening > 0:
        x = sharpen(x, sharpening)
    return x.movedim(1, -1).contiguous()


def square_masks(masks: Tensor, size: int) -> Tensor:
    """The middle squares of masks (M, H, W), as (M, 1, size, size)."""
    side = min(masks.shape[1:])
    return resize_mask(center_crop(masks[:, None], [side, side]), (size, size))


def resize_mask(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks (M, 1, H, W) at another height and width, as they lie over pictures; a little outside 0..1 at edges."""
    return functional.interpolate(masks, size=size, mode="bicubic", antialias=True)


def cut_to_bytes(pictures: Tensor) -> Tensor:
    """Pictures 0..1 as bytes on the CPU, cut off and not rounded: a number between two of them becomes the lower one."""
    return (255 * pictures).to("cpu", torch.uint8)


def _square(x: Tensor, position: str) -> Tensor:
    height, width = x.shape[-2:]
    if position == PAD:
        across, along = (max(0, longer - shorter) // 2 for longer, shorter in ((height, width), (width, height)))
        # alike at both ends: an odd difference leaves one pixel, which the resize evens out
        return functional.pad(x, (across, across, along, along))
    side = min(height, width)
    above, before = POSITIONS[position]
    top, left = above(height - side), before(width - side)
    return x[..., top : top + side, left : left + side]
