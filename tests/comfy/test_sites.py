"""Sites of the real models, at full size on the meta device, and of tiny ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from support import comfy_host, tiny_unet
from support.full_unet import CONFIGS
from support.published import SD15_SITES, SDXL_SITES

# transformer depths as in ComfyUI's model_detection; -1 is a middle block without transformer
SDXL_LIKE = {
    "channel_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "use_linear_in_transformer": True,
}
FULL_SIZE = {
    "SD15": {
        "context_dim": 768,
        "adm_in_channels": None,
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
        "num_heads": 8,
    },
    "SDXL": {
        **SDXL_LIKE,
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
    },
    "SSD1B": {
        **SDXL_LIKE,
        "transformer_depth": [0, 0, 2, 2, 4, 4],
        "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
        "transformer_depth_middle": -1,
    },
    "Segmind_Vega": {
        **SDXL_LIKE,
        "transformer_depth": [0, 0, 1, 1, 2, 2],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
        "transformer_depth_middle": -1,
    },
    "KOALA_700M": {
        **SDXL_LIKE,
        "num_res_blocks": [1, 1, 1],
        "transformer_depth": [0, 2, 5],
        "transformer_depth_output": [0, 0, 2, 2, 5, 5],
        "transformer_depth_middle": -2,
    },
}
NUM_SITES = {"SD15": 16, "SDXL": 70, "SSD1B": 34, "Segmind_Vega": 15, "KOALA_700M": 21}


def sites_of(name: str) -> Any:
    import comfy.supported_models

    common = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "legacy": False}
    common |= {"use_spatial_transformer": True, "use_temporal_attention": False}
    config = getattr(comfy.supported_models, name)({**common, **FULL_SIZE[name]})
    with torch.device("meta"):
        model = config.get_model({}, "", device="meta")
    return comfy_host.pack("ipadapter_core.backbone.registry").discover_sites(model.diffusion_model)


@pytest.mark.parametrize("name", FULL_SIZE)
def test_number_of_sites(base_directory: object, name: str) -> None:
    sites = sites_of(name)
    assert len(sites.sites) == NUM_SITES[name]
    assert (sites.sites[0].context_dim, len(sites.sites)) in sites.backbone.families


@pytest.mark.parametrize(("name", "published"), [("SD15", SD15_SITES), ("SDXL", SDXL_SITES)])
def test_order_is_that_of_the_published_files(base_directory: object, name: str, published: tuple[int, ...]) -> None:
    assert tuple(site.dim for site in sites_of(name).sites) == published


def diffusers_addresses(config: dict[str, Any]) -> list[tuple[str, int, int, int]]:
    """(part, block, transformer, layer) of every attn2 processor, in diffusers' order."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    addresses = []
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            words = name.split(".")
            numbers = [int(word) for word in words if word.isdigit()]
            part = words[0].partition("_")[0]
            addresses.append((part, *([0, *numbers[1:]] if part == "mid" else numbers)))
    return addresses


def comfy_to_diffusers(site: Any, layers_per_block: int = 2) -> tuple[str, int, int, int]:
    if site.group == "input":
        index = site.address[1] - 1
        return "down", index // (layers_per_block + 1), index % (layers_per_block + 1), site.address[2]
    if site.group == "output":
        return "up", *divmod(site.address[1], layers_per_block + 1), site.address[2]
    return "mid", 0, 0, site.address[2]


@pytest.mark.parametrize(("name", "config"), [("SD15", CONFIGS["sd15"]), ("SDXL", CONFIGS["sdxl"])])
def test_order_is_that_of_diffusers(base_directory: object, name: str, config: dict[str, Any]) -> None:
    ours = [comfy_to_diffusers(site) for site in sites_of(name).sites]
    theirs = diffusers_addresses(config)
    assert [address[0] for address in ours] == [address[0] for address in theirs]
    assert [address for address in ours if address[0] != "mid"] == [a for a in theirs if a[0] != "mid"]


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_tiny_models(unet: Callable, model: Callable, layout: str) -> None:
    found = comfy_host.pack("ipadapter_core.backbone.registry").discover_sites(model(layout).model.diffusion_model)
    assert tuple(site.dim for site in found.sites) == tiny_unet.site_dims(unet(layout))


@pytest.mark.parametrize(
    ("name", "style", "composition"), [("SDXL", ("output", 1), ("input", 8)), ("SSD1B", ("output", 1), ("input", 8))]
)
def test_instantstyle_blocks(
    base_directory: object, name: str, style: tuple[str, int], composition: tuple[str, int]
) -> None:
    role = comfy_host.pack("ipadapter_core.backbone.sites").Role
    assert sites_of(name).roles == {style: (role.STYLE, 1.0), composition: (role.COMPOSITION, 1.0)}
