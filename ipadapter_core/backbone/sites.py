"""Attention sites: the cross-attention layers of a UNet, found by walking it, in checkpoint order."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import nn

from ..errors import MismatchError
from ..file.spec import AdapterSpec

# Sites a model family has, by (cross_attention_dim, number of sites); only for messages.
KNOWN_MODELS = {
    (768, 16): "SD1.5",
    (1024, 16): "SD2.x",
    (2048, 70): "SDXL",
    (2048, 34): "SSD-1B",
    (2048, 15): "Segmind Vega",
    (2048, 30): "KOALA 1B",
    (2048, 21): "KOALA 700M",
}


@dataclass(frozen=True, kw_only=True)
class AttentionSite:
    """One cross-attention layer, under the address ComfyUI gives it.

    Attributes:
        index: position n in checkpoint order (down, up, middle); the file's key number is 2n + 1.
        block: "input", "middle" or "output".
        block_id: index of the block inside that list; 0 for the middle block.
        depth_index: index of the layer inside its transformer.
        transformer: index of the transformer in execution order (input, middle, output).
        heads, head_dim, context_dim: as built; heads * head_dim is the site's channel count.
    """

    index: int
    block: str
    block_id: int
    depth_index: int
    transformer: int
    heads: int
    head_dim: int
    context_dim: int

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True)
class UNetSites:
    """All sites of a UNet in checkpoint order, and how many transformers hold them."""

    sites: tuple[AttentionSite, ...]
    num_transformers: int

    @property
    def blocks(self) -> frozenset[tuple[str, int]]:
        return frozenset((site.block, site.block_id) for site in self.sites)

    @property
    def is_deep(self) -> bool:
        """Some transformer has more than one layer, as in SDXL: patches are then addressed per layer."""
        return any(site.depth_index > 0 for site in self.sites)


_EXECUTION_ORDER = ("input", "middle", "output")
_CHECKPOINT_ORDER = ("input", "output", "middle")


def discover_sites(diffusion_model: nn.Module) -> UNetSites:
    """Find the cross-attention layers of a UNet in ComfyUI's (CompVis') layout.

    Raises:
        MismatchError: the model is no UNet with cross-attention.
    """
    found: dict[str, list[tuple[int, nn.Module]]] = {block: [] for block in _EXECUTION_ORDER}
    if all(hasattr(diffusion_model, name) for name in ("input_blocks", "middle_block", "output_blocks")):
        for block in _EXECUTION_ORDER:
            found[block] = list(_transformers(diffusion_model, block))
    addresses = [(block, block_id, module) for block in _EXECUTION_ORDER for block_id, module in found[block]]
    order = {(block, block_id): number for number, (block, block_id, _) in enumerate(addresses)}
    repeated = [address for address, count in Counter((b, i) for b, i, _ in addresses).items() if count > 1]
    if not addresses or repeated:
        raise MismatchError(
            f"a model of class {type(diffusion_model).__name__} without cross-attention layers this project can patch",
            expected="a UNet with text cross-attention (SD1.5, SD2.x, SDXL or a model derived from them)",
            action="connect such a model",
        )
    sites: list[AttentionSite] = []
    for block in _CHECKPOINT_ORDER:
        for block_id, transformer in found[block]:
            for depth_index, layer in _cross_attention_layers(transformer):
                sites.append(_site(layer, len(sites), (block, block_id), depth_index, order[block, block_id]))
    return UNetSites(tuple(sites), len(addresses))


def check_sites(spec: AdapterSpec, unet: UNetSites) -> None:
    """Make sure an adapter was made for a model like this one.

    Raises:
        MismatchError: number, width or order of the sites differ; names both.
    """
    dims = tuple(site.dim for site in unet.sites)
    widths = {site.context_dim for site in unet.sites}
    if dims == spec.site_dims and widths == {spec.cross_attention_dim}:
        return
    model = describe_model(unet)
    adapter = KNOWN_MODELS.get((spec.cross_attention_dim, spec.num_sites), spec.base)
    raise MismatchError(
        f"an adapter for {adapter} ({spec.family}: {spec.num_sites} attention layers, {spec.cross_attention_dim}-wide "
        f"tokens) and a model of the {model} kind ({len(dims)} attention layers, "
        f"{'/'.join(map(str, sorted(widths)))}-wide tokens)",
        expected="an adapter and a model of the same base",
        action=f"load a {adapter} model, or an adapter made for {model}",
    )


def describe_model(unet: UNetSites) -> str:
    """Name of the model family these sites belong to, as well as numbers can tell."""
    width = unet.sites[0].context_dim
    return KNOWN_MODELS.get((width, len(unet.sites)), f"{width}-wide, {len(unet.sites)}-layer")


def _transformers(diffusion_model: nn.Module, block: str) -> Iterator[tuple[int, nn.Module]]:
    root = getattr(diffusion_model, f"{block}_block" if block == "middle" else f"{block}_blocks")
    for block_id, child in enumerate([root or []] if block == "middle" else root):  # KOALA has no middle block
        for module in child:
            if hasattr(module, "transformer_blocks") and any(True for _ in _cross_attention_layers(module)):
                yield block_id, module


def _cross_attention_layers(transformer: nn.Module) -> Iterator[tuple[int, nn.Module]]:
    for depth_index, layer in enumerate(cast("list[nn.Module]", transformer.transformer_blocks)):
        if getattr(layer, "attn2", None) is not None:
            yield depth_index, layer


def _site(layer: nn.Module, index: int, address: tuple[str, int], depth_index: int, transformer: int) -> AttentionSite:
    attention = cast(nn.Module, layer.attn2)
    return AttentionSite(
        index=index,
        block=address[0],
        block_id=address[1],
        depth_index=depth_index,
        transformer=transformer,
        heads=cast(int, attention.heads),
        head_dim=cast(int, attention.dim_head),
        # in_features survives quantised weights, whose shape says nothing
        context_dim=cast(nn.Linear, attention.to_k).in_features,
    )
