"""SD3.5 at its real size, without weights: sites, and bytes of what the adapter needs while sampling."""

from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host
from support.published import PUBLISHED, instantx_sd35, meta_tensors

MIB = 2**20
BFLOAT = 2  # bytes


def mmdit(blocks: int) -> Any:
    """ComfyUI's SD3.5: as many heads as blocks, each of 64 channels."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import MMDiT

    return MMDiT(
        input_size=None,
        in_channels=16,
        depth=blocks,
        adm_in_channels=2048,
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": 4096, "out_features": 64 * blocks},
        },
        num_patches=192**2,
        pos_embed_max_size=192,
        qk_norm="rms",
        device="meta",
        dtype=torch.bfloat16,
        operations=comfy.ops.disable_weight_init,
    )


@pytest.mark.parametrize("blocks", [38, 30, 44])
def test_sd35(base_directory: Path, blocks: int) -> None:
    """SD3.5-Large, and tunes with fewer and with more blocks."""
    core = comfy_host.pack("ipadapter_core.network.adapter")
    registry, fit = comfy_host.pack("ipadapter_core.backbone.registry"), comfy_host.pack("ipadapter_core.network.fit")
    timed, tokens = comfy_host.pack("ipadapter_core.branch.timed"), comfy_host.pack("ipadapter_core.branch.tokens")
    width = 64 * blocks
    shapes = PUBLISHED["instantx_sd35"]() if blocks == 38 else instantx_sd35(blocks=blocks, width=width)
    network = core.build_adapter(meta_tensors(shapes, dtype=torch.bfloat16), {})
    sites = registry.discover_sites(mmdit(blocks)).at_layout(network.spec.layout)
    fit.check_sites(network.spec, sites)
    assert [site.address for site in sites.sites] == [("joint", number, 0) for number in range(blocks)]
    assert sites.family == ("SD3.5-Large" if blocks == 38 else f"{width}-wide, {blocks}-layer")
    image = torch.zeros(1, 729, 1152)
    every = {site.index: tokens.ImageTokens(image, image, "a") for site in sites.sites}
    source = timed.TimedKV(sites.sites, dict.fromkeys(every), network, every)
    # of every evaluation: uncond and cond, keys and values of 64 tokens
    assert source.num_bytes(1, BFLOAT) == 2 * 2 * 64 * width * blocks * BFLOAT
    if blocks == 38:
        near = {part: sum(x.nbytes for x in module.parameters()) / MIB for part, module in network.named_children()}
        assert source.num_bytes(1, BFLOAT) / MIB == pytest.approx(45.1, abs=0.1)
        assert near["ip_adapter"] == pytest.approx(1310, abs=10)
        assert near["image_proj"] == pytest.approx(212, abs=10)
