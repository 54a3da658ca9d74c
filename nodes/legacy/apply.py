"""The general apply nodes: a reference, and widgets that say how it acts."""

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...ipadapter_core.errors import BadInputError, one_of
from . import schema
from .application import LegacyUse, Weight, apply_image
from .apply_node import ApplyNode
from .arrivals import checked
from .payload import read_payload

_NATIVE = "Apply IP-Adapter from Image, or Encode Image for IP-Adapter and Apply IP-Adapter"
# What the simple node calls a weight type.
SIMPLE_TYPES = {"standard": "linear", "prompt is more important": "ease out", "style transfer": "style transfer"}


class IPAdapterSimple(io.ComfyNode):
    """The node with few widgets; its id is `IPAdapter`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "IPAdapter",
            "IPAdapter",
            "ipadapter",
            "Steers a model with reference images.",
            native="Apply IP-Adapter from Image",
            inputs=[
                schema.model(),
                schema.ipadapter(),
                schema.image(),
                schema.weight(high=3.0),
                *schema.start_end(),
                io.Combo.Input(
                    "weight_type",
                    options=list(SIMPLE_TYPES),
                    default="standard",
                    tooltip="Where the image acts: in all layers alike, less in the first ones, or in those of style.",
                ),
                schema.attn_mask(),
            ],
            outputs=[schema.model_output()],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: object,
        image: Tensor,
        weight: Weight,
        start_at: float,
        end_at: float,
        weight_type: str,
        attn_mask: Tensor | None = None,
    ) -> io.NodeOutput:
        payload = read_payload(ipadapter)
        if not payload.is_pipeline:
            raise BadInputError(
                "an adapter without its image encoder (from IPAdapter Model Loader)",
                expected="the output of IPAdapter Unified Loader",
                action="connect that loader, or use IPAdapter Advanced and connect its clip_vision",
            )
        use = LegacyUse(
            weight=weight,
            weight_type=one_of(weight_type, SIMPLE_TYPES, "weight type"),
            start_at=start_at,
            end_at=end_at,
            attn_mask=attn_mask,
        )
        return io.NodeOutput(*apply_image(model, payload, image, use))


class IPAdapterAdvanced(ApplyNode):
    """The node with all usual widgets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "IPAdapterAdvanced",
            "IPAdapter Advanced",
            "ipadapter",
            "Steers a model with reference images.",
            native=_NATIVE,
            inputs=[
                schema.model(),
                schema.ipadapter(),
                schema.image(),
                schema.weight(),
                schema.weight_type(),
                schema.combine_embeds(),
                *schema.start_end(),
                schema.embeds_scaling(),
                *schema.optional_inputs(),
            ],
            outputs=[schema.model_output()],
        )


class IPAdapterBatch(ApplyNode):
    """One reference per latent."""

    per_frame = True

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "IPAdapterBatch",
            "IPAdapter Batch (Adv.)",
            "ipadapter",
            "Steers every latent of a batch with the reference of its number; the last one serves further latents.",
            native="docs/migrating.md to find another way: Apply IP-Adapter gives all latents the same references",
            inputs=[
                schema.model(),
                schema.ipadapter(),
                schema.image(tooltip="One reference image per latent."),
                schema.weight(),
                schema.weight_type(),
                *schema.start_end(),
                schema.embeds_scaling(),
                schema.encode_batch_size(),
                *schema.optional_inputs(),
            ],
            outputs=[schema.model_output()],
        )


class IPAdapterFromParams(ApplyNode):
    """One adapter per region."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema.legacy_schema(
            "IPAdapterFromParams",
            "IPAdapter from Params",
            "ipadapter/params",
            "Steers a model with the references of several regions.",
            native="one Apply IP-Adapter from Image per region, with its mask",
            inputs=[
                schema.model(),
                schema.ipadapter(),
                schema.ParamsSocket.Input("ipadapter_params", tooltip="Regions from IPAdapter Regional Conditioning."),
                schema.combine_embeds(),
                schema.embeds_scaling(),
                schema.image_negative(),
                schema.clip_vision(),
            ],
            outputs=[schema.model_output()],
        )


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterSimple, IPAdapterAdvanced, IPAdapterBatch, IPAdapterFromParams)
