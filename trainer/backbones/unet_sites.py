"""Attention sites of a UNet in diffusers' layout, in checkpoint order, under the addresses ComfyUI gives them."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from ipadapter_core.backbone.sites import Site, Sites
from ipadapter_core.backbone.unet import UNET
from ipadapter_core.errors import MismatchError


def discover_sites(unet: nn.Module) -> tuple[Sites, tuple[Any, ...]]:
    """The cross-attention layers of a diffusers UNet: where they are, and the `Attention` modules themselves.

    diffusers' `attn_processors` has the same order (down, up, middle), so position n is the published number 2n + 1.

    Raises:
        MismatchError: the UNet has no cross-attention.
    """
    sites: list[Site] = []
    modules: list[Any] = []
    found = list(_transformers(unet))
    order = {address: number for number, (address, _) in enumerate(sorted(found, key=_execution_order))}
    for address, transformer in found:
        for layer_number, layer in enumerate(transformer.transformer_blocks):
            if layer.attn2 is None:
                continue
            attention = layer.attn2
            modules.append(attention)
            sites.append(
                Site(
                    index=len(sites),
                    address=(*address, layer_number),
                    depth=order[address] / len(found),
                    heads=attention.heads,
                    head_dim=attention.to_q.out_features // attention.heads,
                    context_dim=attention.to_k.in_features,
                )
            )
    if not sites:
        raise MismatchError(
            f"a {type(unet).__name__} without cross-attention",
            expected="a UNet with text cross-attention (SD1.5, SD2.x, SDXL or a model derived from them)",
            action="choose such a model as base.model",
        )
    return Sites(UNET, tuple(sites)), tuple(modules)


def attention_layers(unet: nn.Module) -> tuple[tuple[str, Any], ...]:
    """Names and modules of all attention layers as the LoRA of a FaceID file numbers them: of every site its block's
    self-attention, then its cross-attention."""
    names = {id(module): name for name, module in unet.named_modules()}
    layers = (layer for _, transformer in _transformers(unet) for layer in transformer.transformer_blocks)
    found = (attention for layer in layers if layer.attn2 is not None for attention in (layer.attn1, layer.attn2))
    return tuple((names[id(attention)], attention) for attention in found)


def _transformers(unet: Any) -> Iterator[tuple[tuple[str, int], Any]]:
    """Every transformer with its address. ComfyUI counts each resnet and each resampler, and its input 0 is conv_in."""
    for side, blocks, first in (("input", unet.down_blocks, 1), ("output", unet.up_blocks, 0)):
        block_id = first
        for block in blocks:
            for number, transformer in enumerate(getattr(block, "attentions", None) or ()):
                yield (side, block_id + number), transformer
            block_id += len(block.resnets)
            if side == "input" and block.downsamplers:
                block_id += 1  # on the way up the upsampler belongs to its block's last entry
    for transformer in getattr(unet.mid_block, "attentions", None) or ():
        yield ("middle", 0), transformer


def _execution_order(found: tuple[tuple[str, int], Any]) -> tuple[int, int]:
    (block, block_id), _ = found
    return ("input", "middle", "output").index(block), block_id
