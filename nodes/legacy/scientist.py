"""`IPAdapterMS`: any weight for any layer."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from . import schema
from .application import LegacyUse, Weight, apply_reference


class IPAdapterMS(io.ComfyNode):
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

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: object,
        image: Tensor,
        weight: Weight,
        weight_faceidv2: float,
        weight_type: str,
        combine_embeds: str,
        start_at: float,
        end_at: float,
        embeds_scaling: str,
        layer_weights: str,
        image_negative: Tensor | None = None,
        attn_mask: Tensor | None = None,
        clip_vision: object | None = None,
        insightface: object | None = None,
    ) -> io.NodeOutput:
        use = LegacyUse(
            weight=weight,
            weight_type=weight_type,
            combine_embeds=combine_embeds,
            start_at=start_at,
            end_at=end_at,
            embeds_scaling=embeds_scaling,
            attn_mask=attn_mask,
            layer_weights=layer_weights,
            weight_faceidv2=weight_faceidv2,
        )
        return apply_reference(model, ipadapter, image, use, image_negative, clip_vision, insightface)


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterMS,)
