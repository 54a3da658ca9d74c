"""What nearly all apply nodes of IPAdapter_plus are: one call with the inputs of all of them, of which each shows some.

Other packs make that call with more inputs than a node shows; see `interface.py`.
"""

from collections.abc import Sequence
from typing import ClassVar

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...ipadapter_core.errors import BadInputError
from ..patching.application import fitting_sites
from .application import LegacyUse, Weight, apply_image, apply_tokens, check_sdxl, encode
from .arrivals import checked
from .params import combine_params
from .payload import IPAdapterParams, Payload, read_payload

# by expand_style
STYLE_TYPES = {False: "style and composition", True: "strong style and composition"}
PRECISE_STYLE, PRECISE_COMPOSITION = "style transfer precise", "composition precise"


class ApplyNode(io.ComfyNode):
    """An apply node that steers a model with pictures: its schema says which of the inputs it shows."""

    per_frame = False  # image i is for latent i
    beyond_schema: ClassVar[dict[str, str]] = {  # types of inputs that not every node shows
        **dict.fromkeys(("image", "image_style", "image_composition", "image_negative"), "IMAGE"),
        **dict.fromkeys(("weight", "weight_style", "weight_composition", "style_boost", "composition_boost"), "FLOAT"),
        **dict.fromkeys(("weight_faceidv2", "weight_kolors", "enhance_ratio"), "FLOAT"),
        **dict.fromkeys(("weight_type", "combine_embeds", "embeds_scaling"), "COMBO"),
        "clip_vision": "CLIP_VISION",
        "insightface": "INSIGHTFACE",
        "attn_mask": "MASK",
        "ipadapter_params": "IPADAPTER_PARAMS",
        "layer_weights": "STRING",
        "enhance_tiles": "INT",
        "expand_style": "BOOLEAN",
    }

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: object,
        start_at: float = 0.0,
        end_at: float = 1.0,
        weight: Weight = 1.0,
        weight_style: Weight = 1.0,
        weight_composition: Weight = 1.0,
        expand_style: bool = False,
        weight_type: str = "linear",
        combine_embeds: str = "concat",
        weight_faceidv2: float | None = None,
        image: Tensor | None = None,
        image_style: Tensor | None = None,
        image_composition: Tensor | None = None,
        image_negative: Tensor | None = None,
        clip_vision: object | None = None,
        attn_mask: Tensor | None = None,
        insightface: object | None = None,
        embeds_scaling: str = "V only",
        layer_weights: str | None = None,
        ipadapter_params: IPAdapterParams | None = None,
        encode_batch_size: int = 0,
        style_boost: Weight | None = None,
        composition_boost: Weight | None = None,
        enhance_tiles: int = 1,
        enhance_ratio: float = 1.0,
        weight_kolors: float = 1.0,
    ) -> io.NodeOutput:
        """Patch a clone of the model.

        Args:
            image_style, image_composition: in place of `image`; without the second the first is both.
            ipadapter_params: regions in place of all that they state.
            encode_batch_size: without effect, images are encoded one by one.
            style_boost, composition_boost: weights of what is kept away; each implies its precise weight type.
            others: as in `LegacyUse`.

        Returns:
            The model, and the pictures that act: faces as they were cut out, other pictures as they came, None of regions.

        Raises:
            BadInputError, MismatchError: as `read_payload`, `encode` and `apply_tokens`; no picture at all, or
                regions that lack a list.
        """
        payload = read_payload(ipadapter, clip_vision, insightface)
        use = LegacyUse(
            weight=weight,
            weight_type=weight_type,
            second=weight_composition if weight_type in STYLE_TYPES.values() else None,
            combine_embeds=combine_embeds,
            start_at=start_at,
            end_at=end_at,
            embeds_scaling=embeds_scaling,
            attn_mask=attn_mask,
            layer_weights=layer_weights or "",
            per_frame=cls.per_frame,
            weight_faceidv2=weight_faceidv2,
            weight_kolors=weight_kolors,
            enhance_tiles=enhance_tiles,
            enhance_ratio=enhance_ratio,
        )
        if ipadapter_params is not None:
            return io.NodeOutput(_apply_regions(model, payload, ipadapter_params, use, image_negative), None)
        if style_boost is not None:
            use = use.but(weight_type=PRECISE_STYLE, second=style_boost)
        elif composition_boost is not None:
            use = use.but(weight_type=PRECISE_COMPOSITION, second=composition_boost)
        if image_style is not None:
            use = use.but(weight=weight_style, second=weight_composition, weight_type=STYLE_TYPES[expand_style])
            images = [image_style, image_style if image_composition is None else image_composition]
            return _apply_style_and_composition(model, payload, images, use, image_negative)
        if image is None:
            raise BadInputError(
                "no image",
                expected="a reference image",
                action="connect one to image, or to image_style or ipadapter_params where there is such an input",
            )
        patched, pictures = apply_image(model, payload, image, use, image_negative)
        return io.NodeOutput(patched, pictures)


def _apply_regions(
    model: ModelPatcher, payload: Payload, params: IPAdapterParams, use: LegacyUse, image_negative: Tensor | None
) -> ModelPatcher:
    params = combine_params([params])
    for number, image in enumerate(params["image"]):
        if image is None:
            continue
        region = use.but(
            weight=params["weight"][number],
            weight_type=params["weight_type"][number],
            start_at=params["start_at"][number],
            end_at=params["end_at"][number],
            attn_mask=params["attn_mask"][number],
        )
        model, _ = apply_image(model, payload, image, region, image_negative)
    return model


def _apply_style_and_composition(
    model: ModelPatcher, payload: Payload, images: Sequence[Tensor], use: LegacyUse, image_negative: Tensor | None
) -> io.NodeOutput:
    check_sdxl(model)
    fitting_sites(model, payload.adapter)
    (style, pictures), (composition, _) = (encode(payload, image, use, image_negative) for image in images)
    return io.NodeOutput(apply_tokens(model, payload.adapter, style, use, composition), pictures)
