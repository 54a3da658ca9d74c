"""The apply nodes that take embeds in place of a picture."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...ipadapter_core.errors import BadInputError
from ...ipadapter_core.legacy.embeds import FILE_RANKS, check_embeds
from ..patching.application import fitting_sites
from . import schema
from .application import LegacyUse, Weight, apply_tokens, tokens_of
from .arrivals import checked
from .features import negative_features
from .payload import read_payload


def _schema(node_id: str, display_name: str, description: str, native: str) -> io.Schema:
    return schema.legacy_schema(
        node_id,
        display_name,
        "ipadapter/embeds",
        description,
        native=native,
        inputs=[
            schema.model(),
            schema.ipadapter(),
            schema.EmbedsSocket.Input("pos_embed", tooltip="The references, from IPAdapter Encoder."),
            schema.weight(high=3.0),
            schema.weight_type(),
            *schema.start_end(),
            schema.embeds_scaling(),
            schema.EmbedsSocket.Input(
                "neg_embed",
                optional=True,
                tooltip="What stands for no image. Neutral: unconnected, which makes it with clip_vision.",
            ),
            schema.attn_mask(),
            schema.clip_vision(),
        ],
        outputs=[schema.model_output()],
    )


def _apply(
    model: ModelPatcher,
    ipadapter: object,
    pos_embed: Tensor,
    use: LegacyUse,
    neg_embed: Tensor | None,
    clip_vision: object | None,
) -> io.NodeOutput:
    payload = read_payload(ipadapter, clip_vision)
    fitting_sites(model, payload.adapter)
    pos_embed = check_embeds(pos_embed, FILE_RANKS)
    if neg_embed is None:
        if payload.clip_vision is None:
            raise BadInputError(
                "neither neg_embed nor clip_vision",
                expected="one of them, for the negative side",
                action="connect the second output of IPAdapter Encoder to neg_embed, or a Load CLIP Vision node",
            )
        neg_embed = negative_features(payload, pos_embed)
    tokens = tokens_of(payload.adapter, pos_embed, check_embeds(neg_embed, FILE_RANKS), use)
    return io.NodeOutput(apply_tokens(model, payload.adapter, tokens, use), None)  # as other apply nodes give a picture


class IPAdapterEmbeds(io.ComfyNode):
    """Apply embeds; several act together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "IPAdapterEmbeds", "IPAdapter Embeds", "Steers a model with embeds.", "Apply IP-Adapter, which takes tokens"
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: object,
        pos_embed: Tensor,
        weight: Weight,
        weight_type: str,
        start_at: float,
        end_at: float,
        embeds_scaling: str,
        neg_embed: Tensor | None = None,
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
        )
        return _apply(model, ipadapter, pos_embed, use, neg_embed, clip_vision)


class IPAdapterEmbedsBatch(io.ComfyNode):
    """Apply embeds, one per latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "IPAdapterEmbedsBatch",
            "IPAdapter Embeds Batch",
            "Steers every latent of a batch with the embeds of its number.",
            "docs/migrating.md to find another way: Apply IP-Adapter gives all latents the same tokens",
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: object,
        pos_embed: Tensor,
        weight: Weight,
        weight_type: str,
        start_at: float,
        end_at: float,
        embeds_scaling: str,
        neg_embed: Tensor | None = None,
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
        return _apply(model, ipadapter, pos_embed, use, neg_embed, clip_vision)


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterEmbeds, IPAdapterEmbedsBatch)
