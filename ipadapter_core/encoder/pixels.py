"""A reference picture as the pixels an image encoder expects."""

# B pictures, H W their size, S the encoder's input size

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BadInputError, one_of
from ..file.spec import CROPS, PADDINGS, Negative

_LARGEST_INPUT = 4096  # pixels of a side; memory grows by its fourth power
_LARGEST_STATISTIC = 1e3
_LONGEST_STRIP = 4  # times its short side
_NO_IMAGE_SEED, _NO_IMAGE_BRIGHTNESS = 0, 0.5  # the middle of what training draws


@dataclass(frozen=True)
class PixelFormat:
    """What an encoder was trained on: square input of `size` pixels, normalised per channel."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, size: int, mean: Sequence[float], std: Sequence[float]) -> "PixelFormat":
        """From the lists a config holds; raises ValueError or TypeError if they are not three usable numbers each."""
        (r, g, b), (r_std, g_std, b_std) = (map(float, values) for values in (mean, std))
        if isinstance(size, bool) or not 1 <= size <= _LARGEST_INPUT:
            raise ValueError(f"an input of {size!r} pixels")
        if not all(abs(value) < _LARGEST_STATISTIC for value in (r, g, b)):
            raise ValueError(f"means of {mean}")
        if not all(0 < value < _LARGEST_STATISTIC for value in (r_std, g_std, b_std)):
            raise ValueError(f"deviations of {std}")
        return cls(int(size), (r, g, b), (r_std, g_std, b_std))


def check_image(image: object) -> Tensor:
    """An IMAGE as (B, H, W, 3) float32 in 0..1; grey is repeated, values slightly outside are clipped.

    A fourth channel is dropped: what of a reference counts is the business of a mask.

    Raises:
        BadInputError: no tensor, another rank, an empty side, or NaN and infinite values.
    """
    if not isinstance(image, Tensor):  # an output may be None, such as that of a node with nothing connected
        raise BadInputError(
            "no image" if image is None else f"a {type(image).__name__} in place of an image",
            expected="an IMAGE",
            action="look at the node that the image comes from: it gave none",
        )
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or 0 in image.shape or image.shape[-1] not in (1, 3, 4):
        raise BadInputError(
            f"an image of shape {list(image.shape)}",
            expected="an IMAGE of shape [batch, height, width, 1, 3 or 4 channels]",
            action="connect an IMAGE output, not a mask or a latent",
        )
    image = image.detach().float()
    if not image.isfinite().all():
        raise BadInputError(
            "an image with NaN or infinite values",
            expected="values from 0 to 1",
            action="check the node that made it (a NaN often comes from a VAE running in float16)",
        )
    if image.shape[-1] == 1:
        image = image.expand(-1, -1, -1, 3)
    return image[..., :3].clamp(0, 1)


def encoder_pixels(
    image: Tensor, pixel_format: PixelFormat, crop: str, mask: Tensor | None = None, padding: str | None = None
) -> Tensor:
    """Resize, crop and normalise pictures.

    Args:
        image: (B, H, W, 3), 0..1.
        crop: `center` cuts the longer side, `pad` fills the shorter one, `stretch` changes the aspect ratio.
        mask: (1 or B, H', W'), 1 where the reference counts; elsewhere the encoder sees its mean colour.
        padding: what `pad` fills with: `mean` (also None), the encoder's mean colour (zero after normalising), or
            `black`.

    Returns:
        (B, 3, S, S), normalised.
    """
    is_black = one_of(padding or PADDINGS[0], PADDINGS, "padding") == "black"
    filling = torch.zeros(1, 3, 1, 1, device=image.device)
    pixels = image.movedim(-1, 1)
    pixels = _fit(pixels, pixel_format.size, one_of(crop, CROPS, "crop"), "bicubic").clamp(0, 1)
    pixels = _normalised(pixels, pixel_format)
    if mask is not None:
        whole = functional.interpolate(mask[:, None], size=image.shape[1:3], mode="area").to(pixels)
        pixels = pixels * _fit(whole, pixel_format.size, crop, "bilinear")
    return _pad(pixels, pixel_format.size, _normalised(filling, pixel_format) if is_black else filling)


def noise_pixels(pixel_format: PixelFormat, generator: torch.Generator, brightness: float | None = None) -> Tensor:
    """A picture in which every value is drawn from 0 to a brightness, itself drawn from 0..1 if not given.

    What ostris/ai-toolkit (MIT) puts in the place of a dropped reference: `get_clip_image_embeds_from_tensors` with
    `drop`, in toolkit/ip_adapter.py.

    Returns:
        (1, 3, S, S), normalised.
    """
    values = torch.rand(1, 3, pixel_format.size, pixel_format.size, generator=generator)
    if brightness is None:
        brightness = torch.rand((), generator=generator).item()
    return _normalised(values * brightness, pixel_format)


def no_image_pixels(negative: Negative, pixel_format: PixelFormat) -> Tensor:
    """The picture (1, 3, S, S), normalised, that is encoded for "no image"; of noise, always the same."""
    if negative is Negative.NOISE:
        return noise_pixels(pixel_format, torch.Generator().manual_seed(_NO_IMAGE_SEED), _NO_IMAGE_BRIGHTNESS)
    black = torch.zeros(1, 3, pixel_format.size, pixel_format.size)
    return _normalised(black, pixel_format) if negative is Negative.BLACK_PICTURE else black


def middle(x: Tensor, height: int, width: int) -> Tensor:
    """The middle of (…, H, W): at most `height` high and `width` wide."""
    top, left = max(0, x.shape[-2] - height) // 2, max(0, x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def _normalised(pixels: Tensor, pixel_format: PixelFormat) -> Tensor:
    """Of (B, 3, H, W), 0..1."""
    pixels = (255 * pixels).round() / 255  # encoders were trained on 8-bit pictures
    mean, std = (
        torch.tensor(values, dtype=pixels.dtype, device=pixels.device)[:, None, None]
        for values in (pixel_format.mean, pixel_format.std)
    )
    return (pixels - mean) / std


def _fit(x: Tensor, size: int, crop: str, mode: str) -> Tensor:
    """To (B, c, s, s'), at most `size` on a side; only `pad` leaves a side shorter."""
    if crop == "center":  # all of a strip one pixel high would take gigabytes when resized; only its middle is seen
        longest = _LONGEST_STRIP * min(x.shape[-2:])
        x = middle(x, longest, longest)
    height, width = x.shape[-2:]
    if crop == "stretch":
        target = (size, size)
    else:
        side = min(height, width) if crop == "center" else max(height, width)
        target = (max(1, height * size // side), max(1, width * size // side))  # as transformers' CLIPImageProcessor
    if target != (height, width):
        x = functional.interpolate(x, size=target, mode=mode, antialias=True)
    return middle(x, size, size)


def _pad(pixels: Tensor, size: int, filling: Tensor) -> Tensor:
    """To (B, 3, S, S), with a filling (1, 3, 1, 1) around."""
    height, width = pixels.shape[-2:]
    top, left = (size - height) // 2, (size - width) // 2
    square = filling.to(pixels.dtype).expand(len(pixels), -1, size, size).clone()
    square[..., top : top + height, left : left + width] = pixels
    return square
