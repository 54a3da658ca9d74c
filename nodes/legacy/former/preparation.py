"""`PrepImageForInsightFace`: a picture of the size faces are looked for in."""

from comfy_api.latest import io
from torch import Tensor
from torch.nn import functional

from ....ipadapter_core.legacy.preparation import POSITIONS, prepare
from .. import schema
from ..arrivals import checked
from ..preparation import pillow_resize

SIDE, MARGIN = 640, 32  # pixels
_WHITE = 1.0


class PrepImageForInsightFace(io.ComfyNode):
    """Prepare a picture with a face."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "PrepImageForInsightFace",
            "Prepare Image For InsightFace",
            "ipadapter",
            "Cuts a square out of a picture and resizes it to 640 x 640 pixels, which helps a face to be found.",
            native="Encode Face for IP-Adapter, which looks for faces at several sizes by itself",
            inputs=[
                schema.image(tooltip="Picture with a face; a batch is several."),
                io.Combo.Input(
                    "crop_position",
                    options=["center", *(name for name in POSITIONS if name != "center")],
                    default="center",
                    tooltip="Which part of a picture that is not square is kept.",
                ),
                schema.sharpening(),
                io.Boolean.Input(
                    "pad_around",
                    default=True,
                    tooltip="On: white all around, so that a face that fills the picture is found. Neutral: off.",
                ),
            ],
            outputs=[io.Image.Output(display_name="IMAGE", tooltip="Square pictures of 640 pixels.")],
        )

    @classmethod
    @checked
    def execute(cls, image: Tensor, crop_position: str, sharpening: float, pad_around: bool) -> io.NodeOutput:
        margin = MARGIN if pad_around else 0
        lanczos, side = pillow_resize("LANCZOS"), SIDE - 2 * margin
        x = prepare(image, crop_position, sharpening, lambda pictures, _width, _height: lanczos(pictures, side, side))
        return io.NodeOutput(functional.pad(x, (0, 0, margin, margin, margin, margin), value=_WHITE))


NODES: tuple[type[io.ComfyNode], ...] = (PrepImageForInsightFace,)
