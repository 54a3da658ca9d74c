"""Attention sites without a model: any layout, and those of SD1.5 and SDXL."""

from collections.abc import Sequence

from ipadapter_core.backbone.flux import FLUX
from ipadapter_core.backbone.sites import Site, Sites
from ipadapter_core.backbone.unet import UNET

# block, block id, layers of its transformer, channels; in execution order
Layout = Sequence[tuple[str, int, int, int]]

SD15: Layout = (
    *(("input", block_id, 1, dim) for block_id, dim in ((1, 320), (2, 320), (4, 640), (5, 640), (7, 1280), (8, 1280))),
    ("middle", 0, 1, 1280),
    *(("output", block_id, 1, 1280 if block_id < 6 else 640 if block_id < 9 else 320) for block_id in range(3, 12)),
)
SDXL: Layout = (
    *(("input", block_id, depth, dim) for block_id, depth, dim in ((4, 2, 640), (5, 2, 640), (7, 10, 1280))),
    ("input", 8, 10, 1280),
    ("middle", 0, 10, 1280),
    *(("output", block_id, 10 if block_id < 3 else 2, 1280 if block_id < 3 else 640) for block_id in range(6)),
)


def transformer_of(site: Site, sites: Sites) -> int:
    """Number of a site's transformer as the model runs."""
    return round(site.depth * len(sites.blocks))


def make_sites(layout: Layout, *, context_dim: int = 16, head_dim: int = 8) -> Sites:
    """Sites in checkpoint order (down, up, middle) of a UNet with these transformers."""
    numbered = sorted(enumerate(layout), key=lambda entry: ("input", "output", "middle").index(entry[1][0]))
    sites: list[Site] = []
    for transformer, (block, block_id, depth, dim) in numbered:
        for layer in range(depth):
            site = Site(
                index=len(sites),
                address=(block, block_id, layer),
                depth=transformer / len(layout),
                heads=dim // head_dim,
                head_dim=head_dim,
                context_dim=context_dim,
            )
            sites.append(site)
    return Sites(UNET, tuple(sites))


def flux_sites(doubles: int = 19, singles: int = 38) -> Sites:
    """Those of FLUX.1."""
    addresses = [("double", number) for number in range(doubles)] + [("single", number) for number in range(singles)]
    sites = (
        Site(index=n, address=(*block, 0), depth=n / len(addresses), heads=24, head_dim=128, context_dim=4096)
        for n, block in enumerate(addresses)
    )
    return Sites(FLUX, tuple(sites), 2)
