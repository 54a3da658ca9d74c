"""Adapters of published shape on base models of their real size: which sites, how many bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host, full_transformers
from support.published import PUBLISHED

# adapter: base model, sites, bytes of K and V of one row in bfloat16
SIZES = {
    "xlabs_v1": ("FLUX", 19, 933_888),
    "xlabs_v2": ("FLUX", 19, 3_735_552),
    "instantx_flux": ("FLUX", 57, 89_653_248),
}
OTHER_BASES = [("xlabs_v2", "Chroma"), ("instantx_flux", "Chroma")]


def load(name: str) -> Any:
    """The adapter, each weight one number repeated."""
    build, sockets = comfy_host.pack("ipadapter_core.network.adapter").build_adapter, comfy_host.pack("nodes.sockets")
    tensors = {
        key: torch.full((1,), 0.5, dtype=torch.bfloat16).expand(shape) for key, shape in PUBLISHED[name]().items()
    }
    return sockets.LoadedAdapter(name, name, build(tensors, {}, sockets.WEIGHT_OPERATIONS), None)


@pytest.mark.parametrize(("name", "base"), [*((name, base) for name, (base, *_) in SIZES.items()), *OTHER_BASES])
def test_a_published_file_fits_its_base(name: str, base: str, base_directory: Path) -> None:
    adapter, model = load(name), full_transformers.comfy_model(base)
    sites = comfy_host.pack("nodes.patching.application").fitting_sites(model, adapter)
    _, count, size = SIZES[name]
    assert len(sites.sites) == count
    tokens = adapter.spec.num_tokens
    assert sum(2 * tokens * site.dim * 2 for site in sites.sites) == size
