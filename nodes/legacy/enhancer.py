"""The apply nodes that see more detail: a reference is encoded in tiles as well."""

from functools import partial

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...ipadapter_core.encoder.pixels import check_image
from ...ipadapter_core.legacy.enhance import enhance
from ..patching.application import fitting_sites
from . import schema
from .application import LegacyUse, Weight, apply_tokens, tokens_of
from .features import negative_features, positive_features
from .payload import read_payload

_MOST_TILES = 16  # per side


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
                max=_MOST_TILES,
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


def _apply(
    model: ModelPatcher,
    ipadapter: object,
    image: Tensor,
    use: LegacyUse,
    enhance_tiles: int,
    enhance_ratio: float,
    image_negative: Tensor | None,
    clip_vision: object | None,
) -> io.NodeOutput:
    payload = read_payload(ipadapter, clip_vision)
    fitting_sites(model, payload.adapter)
    encode = partial(positive_features, payload)
    positive = enhance(check_image(image), min(enhance_tiles, _MOST_TILES), enhance_ratio, encode)
    negative = negative_features(payload, positive, image_negative)
    tokens = tokens_of(payload.adapter, positive, negative, use)
    return io.NodeOutput(apply_tokens(model, payload.adapter, tokens, use))


class IPAdapterClipVisionEnhancer(io.ComfyNode):
    """References with more detail, which act together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("IPAdapterClipVisionEnhancer", "IPAdapter ClipVision Enhancer", ratio=1.0, combines=True)

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: object,
        image: Tensor,
        weight: Weight,
        weight_type: str,
        combine_embeds: str,
        start_at: float,
        end_at: float,
        embeds_scaling: str,
        enhance_tiles: int,
        enhance_ratio: float,
        image_negative: Tensor | None = None,
        attn_mask: Tensor | None = None,
        clip_vision: object | None = None,
    ) -> io.NodeOutput:
        use = LegacyUse(
            weight=weight,
            weight_type=weight_type,
            combine_embeds=combine_embeds,
            start_at=start_at,
            end_at=end_at,
            embeds_scaling=embeds_scaling,
            attn_mask=attn_mask,
        )
        return _apply(model, ipadapter, image, use, enhance_tiles, enhance_ratio, image_negative, clip_vision)


class IPAdapterClipVisionEnhancerBatch(io.ComfyNode):
    """References with more detail, one per latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "IPAdapterClipVisionEnhancerBatch", "IPAdapter ClipVision Enhancer Batch", ratio=0.5, combines=False
        )

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: object,
        image: Tensor,
        weight: Weight,
        weight_type: str,
        start_at: float,
        end_at: float,
        embeds_scaling: str,
        enhance_tiles: int,
        enhance_ratio: float,
        encode_batch_size: int,
        image_negative: Tensor | None = None,
        attn_mask: Tensor | None = None,
        clip_vision: object | None = None,
    ) -> io.NodeOutput:
        use = LegacyUse(
            weight=weight,
            weight_type=weight_type,
            start_at=start_at,
            end_at=end_at,
            embeds_scaling=embeds_scaling,
            attn_mask=attn_mask,
            per_frame=True,
        )
        return _apply(model, ipadapter, image, use, enhance_tiles, enhance_ratio, image_negative, clip_vision)


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterClipVisionEnhancer, IPAdapterClipVisionEnhancerBatch)
