"""References, and masks that belong to them, as the squares an image encoder sees."""

# B pictures, M masks, H W their size

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from ..encoder.pixels import check_image, middle
from ..errors import one_of
from .sharpen import sharpen

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
        crop_position: one of `CROP_POSITIONS`; "pad" puts black bars in place of a cut.
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
    square = middle(masks[:, None], side, side)
    return functional.interpolate(square, size=(size, size), mode="bicubic", antialias=True)


def _square(x: Tensor, position: str) -> Tensor:
    height, width = x.shape[-2:]
    if position == PAD:
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        return functional.pad(x, (left, side - width - left, top, side - height - top))
    side = min(height, width)
    above, before = POSITIONS[position]
    top, left = above(height - side), before(width - side)
    return x[..., top : top + side, left : left + side]
