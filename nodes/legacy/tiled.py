"""The apply nodes that cut a reference into tiles, each of which acts on its own part of the picture."""

from typing import Any

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from torch import Tensor

from ...ipadapter_core.encoder.pixels import check_image
from ...ipadapter_core.legacy.tiles import cut_pictures, tile_masks, tile_picture
from . import schema
from .application import LegacyUse, apply_image
from .payload import read_payload


def _schema(node_id: str, display_name: str, *, combines: bool) -> io.Schema:
    return schema.legacy_schema(
        node_id,
        display_name,
        "ipadapter/tiled",
        "Cuts a reference into tiles of 256 pixels; each steers its own part of the picture.",
        native="one IPAApplyImage per part, with a mask",
        inputs=[
            schema.model(),
            schema.ipadapter(),
            schema.image(),
            schema.weight(high=3.0),
            schema.weight_type(),
            *([schema.combine_embeds()] if combines else []),
            *schema.start_end(),
            io.Float.Input(
                "sharpening",
                default=0.0,
                min=0.0,
                max=1.0,
                step=0.05,
                tooltip="Contrast-adaptive sharpening of the tiles, 0..1; no unit. Neutral: 0, none.",
            ),
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
    *,
    sharpening: float,
    attn_mask: Tensor | None = None,
    image_negative: Tensor | None = None,
    clip_vision: object | None = None,
    **widgets: Any,
) -> io.NodeOutput:
    payload = read_payload(ipadapter, clip_vision)
    pictures = check_image(image)
    tiling = tile_picture(*pictures.shape[1:3])
    tiles = cut_pictures(pictures, tiling, sharpening, comfy.utils.lanczos)
    masks = tile_masks(attn_mask, (pictures.shape[1], pictures.shape[2]), tiling)
    for tile, mask in zip(tiles, masks, strict=True):
        model = apply_image(model, payload, tile, LegacyUse(**widgets, attn_mask=mask), image_negative)
    return io.NodeOutput(model, torch.cat(tiles), torch.cat(masks))


class IPAdapterTiled(io.ComfyNode):
    """Tiles of references that act together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("IPAdapterTiled", "IPAdapter Tiled", combines=True)

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        return _apply(**inputs)


class IPAdapterTiledBatch(io.ComfyNode):
    """Tiles of one reference per latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema("IPAdapterTiledBatch", "IPAdapter Tiled Batch", combines=False)

    @classmethod
    def execute(cls, encode_batch_size: int, **inputs: Any) -> io.NodeOutput:
        return _apply(**inputs, per_frame=True)


NODES: tuple[type[io.ComfyNode], ...] = (IPAdapterTiled, IPAdapterTiledBatch)
