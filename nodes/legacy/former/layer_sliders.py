"""`IPAdapterLayerWeightsSlider`: of a copy of IPAdapter_plus, for the layer weights of IPAdapter Mad Scientist."""

from comfy_api.latest import io

from .. import schema
from ..arrivals import checked

_LAYERS = 12
_NONE = "0: 0"  # lists a layer, so that the others get nothing: an empty text would mean all of them


class IPAdapterLayerWeightsSlider(io.ComfyNode):
    """Sliders in place of a text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "IPAdapterLayerWeightsSlider",
            "IPAdapter Layer Weights Slider",
            "ipadapter/utils",
            "Writes the layer weights of IPAdapter Mad Scientist.",
            native="IP-Adapter Layer Weights",
            inputs=[
                io.Float.Input(
                    f"layer{number}",
                    default=0.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip=f"Factor of layer {number}; no unit. Neutral: 0, this layer gets nothing.",
                )
                for number in range(_LAYERS)
            ],
            outputs=[io.String.Output(display_name="layer_weights", tooltip="For layer_weights.")],
        )

    @classmethod
    @checked
    def execute(cls, **layers: float) -> io.NodeOutput:
        factors = (layers[f"layer{number}"] for number in range(_LAYERS))
        entries = [f"{number}: {factor:g}" for number, factor in enumerate(factors) if factor]
        return io.NodeOutput(", ".join(entries) or _NONE)


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterLayerWeightsSlider,)
