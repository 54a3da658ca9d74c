"""The nodes that take style and composition from different references."""

from comfy_api.latest import io

from . import schema
from .apply_node import ApplyNode

_NATIVE = "Apply IP-Adapter twice, with layer preset 'style' and 'composition'"


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


class IPAdapterStyleComposition(ApplyNode):
    """Style of one reference, composition of another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _style_composition_schema(
            "IPAdapterStyleComposition", "IPAdapter Style & Composition SDXL", combines=True
        )


class IPAdapterStyleCompositionBatch(ApplyNode):
    """The same for every latent of a batch."""

    per_frame = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _style_composition_schema(
            "IPAdapterStyleCompositionBatch", "IPAdapter Style & Composition Batch SDXL", combines=False
        )


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterStyleComposition, IPAdapterStyleCompositionBatch)
