"""Adapters of published shape on base models of their real size: which sites, how many bytes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host, families, full_transformers
from support.published import PUBLISHED, Shapes, anima_lucifer, parameter_count

# adapter: base model, sites, bytes of K and V of one row in bfloat16
SIZES = {
    "xlabs_v1": ("FLUX", 19, 933_888),
    "xlabs_v2": ("FLUX", 19, 3_735_552),
    "instantx_flux": ("FLUX", 57, 89_653_248),
    "anima_lucifer": ("Anima", 28, 234_881_024),
    "anima_pe": ("Anima", 28, 3_670_016),
    "anima_pe_gated": ("Anima", 28, 3_670_016),
    "z_image": ("Z-Image", 30, 7_372_800),
    "qwen_image": ("Qwen-Image", 60, 11_796_480),
}
PATCHES = 32 * 32  # of SigLIP 2 base at 512 pixels, for adapters that make one token of each
OTHER_BASES = [("xlabs_v2", "Chroma"), ("instantx_flux", "Chroma")]


def load(name: str, shapes: Shapes | None = None) -> Any:
    """The adapter, each weight one number repeated."""
    build, sockets = comfy_host.pack("ipadapter_core.network.adapter").build_adapter, comfy_host.pack("nodes.sockets")
    tensors = {
        key: torch.full((1,) * (len(shape) > 0), 0.5, dtype=torch.bfloat16).expand(shape)
        for key, shape in (shapes or PUBLISHED[name]()).items()
    }
    return sockets.LoadedAdapter(name, name, build(tensors, {}, sockets.WEIGHT_OPERATIONS), None)


@pytest.mark.parametrize(("name", "base"), [*((name, base) for name, (base, *_) in SIZES.items()), *OTHER_BASES])
def test_a_published_file_fits_its_base(name: str, base: str, base_directory: Path) -> None:
    adapter, model = load(name), full_transformers.comfy_model(base)
    sites = comfy_host.pack("nodes.patching.application").fitting_sites(model, adapter)
    _, count, size = SIZES[name]
    assert len(sites.sites) == count
    tokens = adapter.spec.num_tokens or PATCHES
    assert sum(2 * tokens * site.dim * 2 for site in sites.sites) == size


def test_a_tune_of_anima_has_as_many_sites_as_its_blocks(base_directory: Path) -> None:
    model = full_transformers.comfy_model("Anima of 36 blocks")
    adapter = load("tune", anima_lucifer(blocks=36))
    sites = comfy_host.pack("nodes.patching.application").fitting_sites(model, adapter)
    assert [site.address for site in sites.sites] == [("block", number, 0) for number in range(36)]
    with pytest.raises(ValueError, match=r"28 attention layers.* and a model of .*36 attention layers"):
        comfy_host.pack("nodes.patching.application").fitting_sites(model, load("anima_lucifer"))


def test_lucifers_file_is_as_large_as_the_published_one_with_a_lora_on_every_linear_layer() -> None:
    """503 MB, in bfloat16; a LoRA of the cross-attention alone would make 437."""
    assert round(2 * parameter_count(PUBLISHED["anima_lucifer"]()) / 1e6) == 503


@pytest.mark.parametrize("name", families.EACH)
def test_weights_that_are_stored_as_bytes_do_not_hide_the_sites(name: str, base_directory: Path) -> None:
    """As a GGUF loader leaves them: packed, with another shape; layers keep their sizes as attributes."""
    model = copy.deepcopy(families.model_of(name).model.diffusion_model)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(torch.zeros(7, dtype=torch.uint8), requires_grad=False)
    discover = comfy_host.pack("ipadapter_core.backbone.registry").discover_sites
    assert discover(model).sites == discover(families.model_of(name).model.diffusion_model).sites
