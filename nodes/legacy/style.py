"""The nodes that take style and composition from different references."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ..patching.application import fitting_sites
from . import schema
from .application import LegacyUse, Weight, apply_tokens, check_sdxl, encode
from .payload import read_payload

_NATIVE = "Apply IP-Adapter twice, with layer_preset 'style' and 'composition'"
# by expand_style
_WEIGHT_TYPES = {False: "style and composition", True: "strong style and composition"}


def _style_composition_schema(node_id: str, display_name: str, *, combines: bool) -> io.Schema:
    return schema.legacy_schema(
        node_id,
        display_name,
        "ipadapter/style_composition",
        "Steers an SDXL model with the style of one reference and the composition of another.",
        native=_NATIVE,
        inputs=[
            schema.model(),
            schema.ipadapter(),
            schema.image("image_style", "Reference for the style; a batch is several references."),
            schema.image("image_composition", "Reference for the composition; a batch is several references."),
            schema.weight("weight_style", tooltip="How strongly the style acts; no unit. Neutral: 0."),
            schema.weight("weight_composition", tooltip="How strongly the composition acts; no unit. Neutral: 0."),
            io.Boolean.Input(
                "expand_style",
                default=False,
                tooltip="Give the style to all layers but those of composition, not to its own alone.",
            ),
            *([schema.combine_embeds("average")] if combines else []),
            *schema.start_end(),
            schema.embeds_scaling(),
            *schema.optional_inputs(),
        ],
        outputs=[schema.model_output()],
    )


def _apply_style_composition(
    model: ModelPatcher,
    ipadapter: object,
    image_style: Tensor,
    image_composition: Tensor,
    use: LegacyUse,
    image_negative: Tensor | None,
    clip_vision: object | None,
) -> io.NodeOutput:
    check_sdxl(model)
    payload = read_payload(ipadapter, clip_vision)
    fitting_sites(model, payload.adapter)
    style, composition = (encode(payload, image, use, image_negative) for image in (image_style, image_composition))
    return io.NodeOutput(apply_tokens(model, payload.adapter, style, use, composition))


class IPAdapterStyleComposition(io.ComfyNode):
    """Style of one reference, composition of another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _style_composition_schema(
            "IPAdapterStyleComposition", "IPAdapter Style & Composition SDXL", combines=True
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: object,
        image_style: Tensor,
        image_composition: Tensor,
        weight_style: Weight,
        weight_composition: Weight,
        expand_style: bool,
        combine_embeds: str,
        start_at: float,
        end_at: float,
        embeds_scaling: str,
        image_negative: Tensor | None = None,
        attn_mask: Tensor | None = None,
        clip_vision: object | None = None,
    ) -> io.NodeOutput:
        use = LegacyUse(
            weight=weight_style,
            second=weight_composition,
            weight_type=_WEIGHT_TYPES[expand_style],
            combine_embeds=combine_embeds,
            start_at=start_at,
            end_at=end_at,
            embeds_scaling=embeds_scaling,
            attn_mask=attn_mask,
        )
        return _apply_style_composition(
            model, ipadapter, image_style, image_composition, use, image_negative, clip_vision
        )


class IPAdapterStyleCompositionBatch(io.ComfyNode):
    """The same for every latent of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _style_composition_schema(
            "IPAdapterStyleCompositionBatch", "IPAdapter Style & Composition Batch SDXL", combines=False
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: object,
        image_style: Tensor,
        image_composition: Tensor,
        weight_style: Weight,
        weight_composition: Weight,
        expand_style: bool,
        start_at: float,
        end_at: float,
        embeds_scaling: str,
        image_negative: Tensor | None = None,
        attn_mask: Tensor | None = None,
        clip_vision: object | None = None,
    ) -> io.NodeOutput:
        use = LegacyUse(
            weight=weight_style,
            second=weight_composition,
            weight_type=_WEIGHT_TYPES[expand_style],
            start_at=start_at,
            end_at=end_at,
            embeds_scaling=embeds_scaling,
            attn_mask=attn_mask,
            per_frame=True,
        )
        return _apply_style_composition(
            model, ipadapter, image_style, image_composition, use, image_negative, clip_vision
        )


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterStyleComposition, IPAdapterStyleCompositionBatch)
