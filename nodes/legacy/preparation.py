"""`PrepImageForClipVision`: cut a square out of a reference, bring it to the encoder's size, and sharpen it."""

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ...ipadapter_core.errors import one_of
from ...ipadapter_core.legacy.preparation import CROP_POSITIONS, Resize, cut_to_bytes, prepare
from .arrivals import checked
from .schema import legacy_schema, sharpening

INTERPOLATIONS = ("LANCZOS", "BICUBIC", "HAMMING", "BILINEAR", "BOX", "NEAREST")  # Pillow's


def pillow_resize(interpolation: str) -> Resize:
    """Pillow's resampling, on pictures of 8 bits.

    Raises:
        BadInputError: none of `INTERPOLATIONS`.
    """
    resampling = Image.Resampling[one_of(interpolation, INTERPOLATIONS, "interpolation")]

    def resize(pictures: Tensor, width: int, height: int) -> Tensor:
        pixels = cut_to_bytes(pictures.movedim(1, -1)).numpy()
        resized = [np.asarray(Image.fromarray(picture).resize((width, height), resampling)) for picture in pixels]
        return torch.from_numpy(np.stack(resized)).movedim(-1, 1).float() / 255

    return resize


class PrepImageForClipVision(io.ComfyNode):
    """Prepare a reference for the image encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "PrepImageForClipVision",
            "Prep Image For ClipVision",
            "ipadapter/utils",
            "Cuts a square out of a reference, resizes it to 224 x 224 pixels and sharpens it.",
            native="crop in Encode Image for IP-Adapter; where another part than the middle is wanted, crop the picture before it",
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
                    options=list(CROP_POSITIONS),
                    default="top",
                    tooltip="Which part of a picture that is not square is kept; 'pad' keeps all between black bars.",
                ),
                sharpening(),
            ],
            outputs=[io.Image.Output(tooltip="Square pictures of 224 pixels.")],
        )

    @classmethod
    @checked
    def execute(cls, image: Tensor, interpolation: str, crop_position: str, sharpening: float) -> io.NodeOutput:
        return io.NodeOutput(prepare(image, crop_position, sharpening, pillow_resize(interpolation)))


NODES = (PrepImageForClipVision,)
