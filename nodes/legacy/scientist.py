"""`IPAdapterMS`: any weight for any layer."""

from comfy_api.latest import io

from . import schema
from .apply_node import ApplyNode


class IPAdapterMS(ApplyNode):
    """The "mad scientist": factors by layer."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "IPAdapterMS",
            "IPAdapter Mad Scientist",
            "ipadapter/dev",
            "Steers a model with references, with a factor for every group of layers.",
            native="Apply IP-Adapter with IP-Adapter Layer Weights",
            inputs=[
                schema.model(),
                schema.ipadapter(),
                schema.image(),
                schema.weight(),
                schema.face_weight(),
                schema.weight_type(),
                schema.combine_embeds(),
                *schema.start_end(),
                schema.embeds_scaling(),
                io.String.Input(
                    "layer_weights",
                    default="",
                    multiline=True,
                    tooltip="Factors by transformer in the order they run, such as '3: 0.5, 6: 1'; those not listed get "
                    "nothing. Neutral: empty, weight_type decides.",
                ),
                *schema.optional_inputs(face=True),
            ],
            outputs=[schema.model_output()],
        )


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterMS,)
