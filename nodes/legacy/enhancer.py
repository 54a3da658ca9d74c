"""The apply nodes that see more detail: a reference is encoded in tiles as well."""

from comfy_api.latest import io

from ...ipadapter_core.legacy.enhance import MOST_TILES
from . import schema
from .apply_node import ApplyNode


def _schema(node_id: str, display_name: str, *, ratio: float, combines: bool) -> io.Schema:
    return schema.legacy_schema(
        node_id,
        display_name,
        "ipadapter/dev",
        "Steers a model with references that are encoded whole and in tiles, so that more detail is seen.",
        native="Combine IP-Adapter Tokens on crops of the reference, from Encode Image for IP-Adapter",
        inputs=[
            schema.model(),
            schema.ipadapter(),
            schema.image(),
            schema.weight(),
            schema.weight_type(),
            *([schema.combine_embeds()] if combines else []),
            *schema.start_end(),
            schema.embeds_scaling(),
            io.Int.Input(
                "enhance_tiles",
                default=2,
                min=1,
                max=MOST_TILES,
                tooltip="Tiles per side; 3 is 3 x 3 tiles. Neutral: 1, the whole picture only.",
            ),
            io.Float.Input(
                "enhance_ratio",
                default=ratio,
                min=0.0,
                max=1.0,
                step=0.05,
                tooltip="How much the whole picture counts beside its tiles, 0..1. Neutral: 1.",
            ),
            *([] if combines else [schema.encode_batch_size()]),
            *schema.optional_inputs(),
        ],
        outputs=[schema.model_output()],
    )


class IPAdapterClipVisionEnhancer(ApplyNode):
    """References with more detail, which act together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("IPAdapterClipVisionEnhancer", "IPAdapter ClipVision Enhancer", ratio=1.0, combines=True)


class IPAdapterClipVisionEnhancerBatch(ApplyNode):
    """References with more detail, one per latent."""

    per_frame = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "IPAdapterClipVisionEnhancerBatch", "IPAdapter ClipVision Enhancer Batch", ratio=0.5, combines=False
        )


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterClipVisionEnhancer, IPAdapterClipVisionEnhancerBatch)
