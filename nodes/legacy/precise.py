"""The nodes that give one side of a reference, its style or its composition, and keep the other away."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from . import schema
from .application import LegacyUse, Weight, apply_reference

_BOOST_RANGE = {"low": -5.0, "high": 5.0}


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
    return _precise_schema(
        node_id, display_name, description, "Apply IP-Adapter with layer_preset 'precise style'", boost
    )


def _precise_composition_schema(node_id: str, display_name: str) -> io.Schema:
    boost = schema.weight(
        "composition_boost",
        **_BOOST_RANGE,
        default=0.0,
        tooltip="How strongly the picture is kept away from all of the reference but its composition; no unit. "
        "Neutral: 0.",
    )
    description = "Steers a model with the composition of a reference and away from its style."
    native = "Apply IP-Adapter with layer_preset 'precise composition'"
    return _precise_schema(node_id, display_name, description, native, boost)


class IPAdapterPreciseStyleTransfer(io.ComfyNode):
    """Style without composition."""

    per_frame = False

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _precise_style_schema("IPAdapterPreciseStyleTransfer", "IPAdapter Precise Style Transfer")

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: object,
        image: Tensor,
        weight: Weight,
        style_boost: Weight,
        combine_embeds: str,
        start_at: float,
        end_at: float,
        embeds_scaling: str,
        image_negative: Tensor | None = None,
        attn_mask: Tensor | None = None,
        clip_vision: object | None = None,
    ) -> io.NodeOutput:
        use = LegacyUse(
            weight=weight,
            weight_type="style transfer precise",
            second=style_boost,
            combine_embeds=combine_embeds,
            start_at=start_at,
            end_at=end_at,
            embeds_scaling=embeds_scaling,
            attn_mask=attn_mask,
            per_frame=cls.per_frame,
        )
        return apply_reference(model, ipadapter, image, use, image_negative, clip_vision)


class IPAdapterPreciseStyleTransferBatch(IPAdapterPreciseStyleTransfer):
    """The same, one reference per latent."""

    per_frame = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _precise_style_schema("IPAdapterPreciseStyleTransferBatch", "IPAdapter Precise Style Transfer Batch")


class IPAdapterPreciseComposition(io.ComfyNode):
    """Composition without style."""

    per_frame = False

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _precise_composition_schema("IPAdapterPreciseComposition", "IPAdapter Precise Composition")

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: object,
        image: Tensor,
        weight: Weight,
        composition_boost: Weight,
        combine_embeds: str,
        start_at: float,
        end_at: float,
        embeds_scaling: str,
        image_negative: Tensor | None = None,
        attn_mask: Tensor | None = None,
        clip_vision: object | None = None,
    ) -> io.NodeOutput:
        use = LegacyUse(
            weight=weight,
            weight_type="composition precise",
            second=composition_boost,
            combine_embeds=combine_embeds,
            start_at=start_at,
            end_at=end_at,
            embeds_scaling=embeds_scaling,
            attn_mask=attn_mask,
            per_frame=cls.per_frame,
        )
        return apply_reference(model, ipadapter, image, use, image_negative, clip_vision)


class IPAdapterPreciseCompositionBatch(IPAdapterPreciseComposition):
    """The same, one reference per latent."""

    per_frame = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _precise_composition_schema("IPAdapterPreciseCompositionBatch", "IPAdapter Precise Composition Batch")


NODES: tuple[type[io.ComfyNode], ...] = (
    IPAdapterPreciseStyleTransfer,
    IPAdapterPreciseStyleTransferBatch,
    IPAdapterPreciseComposition,
    IPAdapterPreciseCompositionBatch,
)
