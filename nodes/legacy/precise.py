"""The nodes that give one side of a reference, its style or its composition, and keep the other away."""

from comfy_api.latest import io

from . import schema
from .apply_node import ApplyNode

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
        node_id, display_name, description, "Apply IP-Adapter with layer preset 'precise style'", boost
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
    native = "Apply IP-Adapter with layer preset 'precise composition'"
    return _precise_schema(node_id, display_name, description, native, boost)


class IPAdapterPreciseStyleTransfer(ApplyNode):
    """Style without composition."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _precise_style_schema("IPAdapterPreciseStyleTransfer", "IPAdapter Precise Style Transfer")


class IPAdapterPreciseStyleTransferBatch(IPAdapterPreciseStyleTransfer):
    """The same, one reference per latent."""

    per_frame = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _precise_style_schema("IPAdapterPreciseStyleTransferBatch", "IPAdapter Precise Style Transfer Batch")


class IPAdapterPreciseComposition(ApplyNode):
    """Composition without style."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _precise_composition_schema("IPAdapterPreciseComposition", "IPAdapter Precise Composition")


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
