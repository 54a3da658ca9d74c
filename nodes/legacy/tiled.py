"""The apply nodes that cut a reference into tiles, each of which acts on its own part of the picture."""

import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...ipadapter_core.encoder.pixels import check_image
from ...ipadapter_core.legacy.tiles import cut_pictures, tile_masks, tile_picture
from . import schema
from .application import LegacyUse, Weight, apply_image
from .arrivals import checked
from .payload import read_payload
from .preparation import pillow_resize


def _schema(node_id: str, display_name: str, *, combines: bool) -> io.Schema:
    return schema.legacy_schema(
        node_id,
        display_name,
        "ipadapter/tiled",
        "Cuts a reference into tiles of 256 pixels; each steers its own part of the picture.",
        native="one Apply IP-Adapter from Image per part, with a mask",
        inputs=[
            schema.model(),
            schema.ipadapter(),
            schema.image(),
            schema.weight(high=3.0),
            schema.weight_type(),
            *([schema.combine_embeds()] if combines else []),
            *schema.start_end(),
            schema.sharpening("Contrast-adaptive sharpening of the whole picture before it is cut"),
            schema.embeds_scaling(),
            *([] if combines else [schema.encode_batch_size()]),
            *schema.optional_inputs(),
        ],
        outputs=[
            schema.model_output(),
            io.Image.Output(display_name="tiles", tooltip="The tiles, 256 x 256 pixels."),
            io.Mask.Output(display_name="masks", tooltip="Where each tile acts."),
        ],
    )


def _apply(
    model: ModelPatcher,
    ipadapter: object,
    image: Tensor,
    use: LegacyUse,
    sharpening: float,
    image_negative: Tensor | None,
    clip_vision: object | None,
) -> io.NodeOutput:
    payload = read_payload(ipadapter, clip_vision)
    pictures = check_image(image)
    tiling = tile_picture(*pictures.shape[1:3])
    tiles = cut_pictures(pictures, tiling, sharpening, pillow_resize("LANCZOS"))
    masks = tile_masks(use.attn_mask, (pictures.shape[1], pictures.shape[2]), tiling)
    for tile, mask in zip(tiles, masks, strict=True):
        model, _ = apply_image(model, payload, tile, use.but(attn_mask=mask), image_negative)
    return io.NodeOutput(model, torch.cat(tiles), torch.cat(masks))


class IPAdapterTiled(io.ComfyNode):
    """Tiles of references that act together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("IPAdapterTiled", "IPAdapter Tiled", combines=True)

    @classmethod
    @checked
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
        sharpening: float,
        embeds_scaling: str,
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
        return _apply(model, ipadapter, image, use, sharpening, image_negative, clip_vision)


class IPAdapterTiledBatch(io.ComfyNode):
    """Tiles of one reference per latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("IPAdapterTiledBatch", "IPAdapter Tiled Batch", combines=False)

    @classmethod
    @checked
    def execute(
        cls,
        model: ModelPatcher,
        ipadapter: object,
        image: Tensor,
        weight: Weight,
        weight_type: str,
        start_at: float,
        end_at: float,
        sharpening: float,
        embeds_scaling: str,
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
        return _apply(model, ipadapter, image, use, sharpening, image_negative, clip_vision)


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterTiled, IPAdapterTiledBatch)
