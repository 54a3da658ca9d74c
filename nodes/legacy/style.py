"""The nodes that keep style and composition apart."""

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from . import schema
from .application import LegacyUse, apply_reference, apply_tokens, check_sdxl, encode, fitting_sites
from .payload import read_payload

_NATIVE = "IPAApply twice, with layer_preset 'style' and 'composition'"
_BOOST_RANGE = {"low": -5.0, "high": 5.0}


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
    *,
    weight_style: float,
    weight_composition: float,
    expand_style: bool,
    image_negative: Tensor | None = None,
    clip_vision: object | None = None,
    **widgets: Any,
) -> io.NodeOutput:
    check_sdxl(model)
    payload = read_payload(ipadapter, clip_vision)
    fitting_sites(model, payload.adapter)
    use = LegacyUse(
        weight=weight_style,
        second=weight_composition,
        weight_type="strong style and composition" if expand_style else "style and composition",
        **widgets,
    )
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
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        return _apply_style_composition(**inputs)


class IPAdapterStyleCompositionBatch(io.ComfyNode):
    """The same for every latent of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _style_composition_schema(
            "IPAdapterStyleCompositionBatch", "IPAdapter Style & Composition Batch SDXL", combines=False
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        return _apply_style_composition(**inputs, per_frame=True)


def _precise_schema(node_id: str, display_name: str, description: str, native: str, boost: io.Input) -> io.Schema:
    return schema.legacy_schema(
        node_id,
        display_name,
        "ipadapter",
        description,
        native=native,
        inputs=[
            schema.model(),
            schema.ipadapter(),
            schema.image(),
            schema.weight(),
            boost,
            schema.combine_embeds(),
            *schema.start_end(),
            schema.embeds_scaling(),
            *schema.optional_inputs(),
        ],
        outputs=[schema.model_output()],
    )


def _precise_style_schema(node_id: str, display_name: str) -> io.Schema:
    boost = schema.weight(
        "style_boost",
        **_BOOST_RANGE,
        tooltip="How strongly the picture is kept away from the reference's composition; no unit. Neutral: 0.",
    )
    description = "Steers a model with the style of a reference and away from its composition."
    return _precise_schema(node_id, display_name, description, "IPAApply with layer_preset 'precise style'", boost)


def _precise_composition_schema(node_id: str, display_name: str) -> io.Schema:
    boost = schema.weight(
        "composition_boost",
        **_BOOST_RANGE,
        default=0.0,
        tooltip="How strongly the picture is kept away from all of the reference but its composition; no unit. "
        "Neutral: 0.",
    )
    description = "Steers a model with the composition of a reference and away from its style."
    native = "IPAApply with layer_preset 'precise composition'"
    return _precise_schema(node_id, display_name, description, native, boost)


class IPAdapterPreciseStyleTransfer(io.ComfyNode):
    """Style without composition."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _precise_style_schema("IPAdapterPreciseStyleTransfer", "IPAdapter Precise Style Transfer")

    @classmethod
    def execute(cls, style_boost: float, **inputs: Any) -> io.NodeOutput:
        return apply_reference(**inputs, weight_type="style transfer precise", second=style_boost)


class IPAdapterPreciseStyleTransferBatch(io.ComfyNode):
    """The same, one reference per latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _precise_style_schema("IPAdapterPreciseStyleTransferBatch", "IPAdapter Precise Style Transfer Batch")

    @classmethod
    def execute(cls, style_boost: float, **inputs: Any) -> io.NodeOutput:
        return apply_reference(**inputs, weight_type="style transfer precise", second=style_boost, per_frame=True)


class IPAdapterPreciseComposition(io.ComfyNode):
    """Composition without style."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _precise_composition_schema("IPAdapterPreciseComposition", "IPAdapter Precise Composition")

    @classmethod
    def execute(cls, composition_boost: float, **inputs: Any) -> io.NodeOutput:
        return apply_reference(**inputs, weight_type="composition precise", second=composition_boost)


class IPAdapterPreciseCompositionBatch(io.ComfyNode):
    """The same, one reference per latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _precise_composition_schema("IPAdapterPreciseCompositionBatch", "IPAdapter Precise Composition Batch")

    @classmethod
    def execute(cls, composition_boost: float, **inputs: Any) -> io.NodeOutput:
        return apply_reference(**inputs, weight_type="composition precise", second=composition_boost, per_frame=True)


NODES: tuple[type[io.ComfyNode], ...] = (
    IPAdapterStyleComposition,
    IPAdapterStyleCompositionBatch,
    IPAdapterPreciseStyleTransfer,
    IPAdapterPreciseStyleTransferBatch,
    IPAdapterPreciseComposition,
    IPAdapterPreciseCompositionBatch,
)
