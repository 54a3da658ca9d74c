"""`IPAdapterNoise`: a negative image made of noise."""

from comfy_api.latest import io
from torch import Tensor

from ...ipadapter_core.legacy.noise import NOISES, make_noise
from .arrivals import checked
from .schema import legacy_schema


class IPAdapterNoise(io.ComfyNode):
    """Make a negative image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return legacy_schema(
            "IPAdapterNoise",
            "IPAdapter Noise",
            "ipadapter/utils",
            "Makes a negative image of noise, 224 x 224 pixels.",
            native="any picture as negative image of Encode Image for IP-Adapter",
            inputs=[
                io.Combo.Input(
                    "type",
                    options=list(NOISES),
                    default="fade",
                    tooltip="'fade' mixes noise in, 'dissolve' replaces single numbers, 'gaussian' adds, 'shuffle' warps "
                    "and flips the picture.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much noise, 0..1; no unit. Neutral: 0, the picture itself.",
                ),
                io.Int.Input(
                    "blur",
                    default=0,
                    min=0,
                    max=32,
                    step=1,
                    tooltip="Size of a gaussian blur after the noise, in pixels. Neutral: 0, none.",
                ),
                io.Image.Input(
                    "image_optional",
                    optional=True,
                    tooltip="What the noise lies over; its middle square is used. Neutral: unconnected, which is black.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="For image_negative of the IPAdapter nodes.")],
        )

    @classmethod
    @checked
    def execute(cls, type: str, strength: float, blur: int, image_optional: Tensor | None = None) -> io.NodeOutput:
        return io.NodeOutput(make_noise(type, strength, blur, image_optional))


NODES = (IPAdapterNoise,)
