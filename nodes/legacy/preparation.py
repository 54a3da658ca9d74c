"""`PrepImageForClipVision`: cut a square out of a reference, bring it to the encoder's size, and sharpen it."""

from collections.abc import Callable

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ...ipadapter_core.encoder.pixels import check_image
from ...ipadapter_core.errors import BadInputError
from ...ipadapter_core.legacy.sharpen import sharpen
from .schema import legacy_schema

SIDE = 224  # pixels
INTERPOLATIONS = ("LANCZOS", "BICUBIC", "HAMMING", "BILINEAR", "BOX", "NEAREST")
PAD = "pad"
# What is left of the picture above or left of the square, out of the room there is; the other axis is centred.
POSITIONS: dict[str, tuple[Callable[[int], int], Callable[[int], int]]] = {
    "top": (lambda room: 0, lambda room: room // 2),
    "bottom": (lambda room: room, lambda room: room // 2),
    "left": (lambda room: room // 2, lambda room: 0),
    "right": (lambda room: room // 2, lambda room: room),
    "center": (lambda room: room // 2, lambda room: room // 2),
}


def prepare(image: Tensor, interpolation: str, crop_position: str, sharpening: float) -> Tensor:
    """Square pictures of 224 pixels.

    Args:
        image: (B, H, W, 3), 0..1.
        interpolation: one of `INTERPOLATIONS`, Pillow's resampling.
        crop_position: a key of `POSITIONS`, or "pad" for black bars instead of a cut.
        sharpening: 0..1; 0 is none.

    Returns:
        (B, 224, 224, 3), 0..1.

    Raises:
        BadInputError: an unknown position or interpolation.
    """
    for what, value, known in (
        ("crop position", crop_position, (*POSITIONS, PAD)),
        ("interpolation", interpolation, INTERPOLATIONS),
    ):
        if value not in known:
            raise BadInputError(f"{what} {value!r}", expected=f"one of {', '.join(known)}", action="choose one of them")
    resampling = Image.Resampling[interpolation]
    squares = [_square(Image.fromarray(pixels), crop_position) for pixels in _bytes(check_image(image))]
    resized = np.stack([np.asarray(square.resize((SIDE, SIDE), resampling)) for square in squares])
    x = torch.from_numpy(resized).movedim(-1, 1).float() / 255
    if sharpening > 0:
        x = sharpen(x, sharpening)
    return x.movedim(1, -1).contiguous()


def _bytes(image: Tensor) -> "np.ndarray":
    return (255 * image).round().to("cpu", torch.uint8).numpy()


def _square(picture: Image.Image, position: str) -> Image.Image:
    if position == PAD:
        side = max(picture.size)
        padded = Image.new("RGB", (side, side))
        padded.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return padded
    side = min(picture.size)
    above, before = POSITIONS[position]
    top, left = above(picture.height - side), before(picture.width - side)
    return picture.crop((left, top, left + side, top + side))


class PrepImageForClipVision(io.ComfyNode):
    """Prepare a reference for the image encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "PrepImageForClipVision",
            "Prep Image For ClipVision",
            "ipadapter/utils",
            "Cuts a square out of a reference, resizes it to 224 x 224 pixels and sharpens it.",
            native="crop of IPAEncodeImage, after ImageCrop where another part than the middle is wanted",
            inputs=[
                io.Image.Input("image", tooltip="Reference image; a batch is several."),
                io.Combo.Input(
                    "interpolation",
                    options=list(INTERPOLATIONS),
                    default="LANCZOS",
                    tooltip="How pixels are resampled; LANCZOS is the sharpest.",
                ),
                io.Combo.Input(
                    "crop_position",
                    options=[*POSITIONS, PAD],
                    default="top",
                    tooltip="Which part of a picture that is not square is kept; 'pad' keeps all between black bars.",
                ),
                io.Float.Input(
                    "sharpening",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Contrast-adaptive sharpening, 0..1; no unit. Neutral: 0, none.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="Square pictures of 224 pixels.")],
        )

    @classmethod
    def execute(cls, image: Tensor, interpolation: str, crop_position: str, sharpening: float) -> io.NodeOutput:
        return io.NodeOutput(prepare(image, interpolation, crop_position, sharpening))


NODES = (PrepImageForClipVision,)
