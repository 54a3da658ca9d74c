"""UNets: the cross-attention layers of SD1.5, SD2.x, SDXL and what is derived from them, in ComfyUI's (CompVis') layout."""

from collections.abc import Iterator, Set
from typing import cast

from torch import nn

from .projections import CrossAttentionProjection
from .row import Backbone
from .sites import Block, Role, Roles, Site

_EXECUTION_ORDER = ("input", "middle", "output")
_CHECKPOINT_ORDER = ("input", "output", "middle")

_SD15_BLOCKS = frozenset(
    [("input", i) for i in (1, 2, 4, 5, 7, 8)] + [("middle", 0)] + [("output", i) for i in range(3, 12)]
)
# SD1.5 has no single style block: (role, factor) by block, other blocks are OTHER.
_SD15_ROLES: dict[Block, tuple[Role, float]] = {
    **{("input", i): (Role.STYLE, 1.0) for i in (1, 2, 4, 5)},
    **{("output", i): (Role.STYLE, 1.0) for i in range(5, 12)},
    ("input", 7): (Role.COMPOSITION, 0.25),
    ("input", 8): (Role.COMPOSITION, 1.0),
}


def find_sites(diffusion_model: nn.Module) -> tuple[Site, ...]:
    """The cross-attention layers in checkpoint order (down, up, middle); none where the model is no such UNet."""
    if not all(hasattr(diffusion_model, name) for name in ("input_blocks", "middle_block", "output_blocks")):
        return ()
    found = {group: list(_transformers(diffusion_model, group)) for group in _EXECUTION_ORDER}
    blocks = [(group, number) for group in _EXECUTION_ORDER for number, _ in found[group]]
    if len(set(blocks)) < len(blocks):  # ComfyUI's addresses could not tell two transformers in one block apart
        return ()
    depths = {block: number / len(blocks) for number, block in enumerate(blocks)}
    sites: list[Site] = []
    for group in _CHECKPOINT_ORDER:
        for number, transformer in found[group]:
            for layer, module in _cross_attention_layers(transformer):
                address, depth = (group, number, layer), depths[group, number]
                sites.append(_site(cast(nn.Module, module.attn2), len(sites), address, depth))
    return tuple(sites)


def block_roles(blocks: Set[Block]) -> Roles:
    """Role and role factor of each block that has one (InstantStyle, arXiv 2404.02733).

    Apart from SD1.5, composition is the last transformer on the way down and style the second on the way up: in SDXL
    InstantStyle's blocks, in a distilled or tiny model their counterparts.
    """
    if blocks == _SD15_BLOCKS:
        return _SD15_ROLES
    down = sorted(number for group, number in blocks if group == "input")
    up = sorted(number for group, number in blocks if group == "output")
    roles: dict[Block, tuple[Role, float]] = {}
    if down:
        roles["input", down[-1]] = (Role.COMPOSITION, 1.0)
    if up:
        roles["output", up[min(1, len(up) - 1)]] = (Role.STYLE, 1.0)
    return roles


def is_deep(sites: tuple[Site, ...]) -> bool:
    """Some transformer has more than one layer, as in SDXL: patches are then addressed per layer."""
    return any(site.address[2] > 0 for site in sites)


UNET = Backbone(
    name="UNet",
    find=find_sites,
    groups=_EXECUTION_ORDER,
    roles=block_roles,
    site_projection=CrossAttentionProjection,
    site_key=lambda index: str(2 * index + 1),  # diffusers numbers self-attention too
    families={
        (768, 16): "SD1.5",
        (1024, 16): "SD2.x",
        (2048, 70): "SDXL",
        (2048, 34): "SSD-1B",
        (2048, 15): "Segmind Vega",
        (2048, 30): "KOALA 1B",
        (2048, 21): "KOALA 700M",
    },
)


def _transformers(diffusion_model: nn.Module, group: str) -> Iterator[tuple[int, nn.Module]]:
    root = getattr(diffusion_model, f"{group}_block" if group == "middle" else f"{group}_blocks")
    for number, child in enumerate([root or []] if group == "middle" else root):  # KOALA has no middle block
        for module in child:
            if hasattr(module, "transformer_blocks") and any(True for _ in _cross_attention_layers(module)):
                yield number, module


def _cross_attention_layers(transformer: nn.Module) -> Iterator[tuple[int, nn.Module]]:
    for layer, module in enumerate(cast("list[nn.Module]", transformer.transformer_blocks)):
        if getattr(module, "attn2", None) is not None:
            yield layer, module


def _site(attention: nn.Module, index: int, address: tuple[str, int, int], depth: float) -> Site:
    return Site(
        index=index,
        address=address,
        depth=depth,
        heads=cast(int, attention.heads),
        head_dim=cast(int, attention.dim_head),
        # in_features survives quantised weights, whose shape says nothing
        context_dim=cast(nn.Linear, attention.to_k).in_features,
    )
