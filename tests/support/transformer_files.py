"""Adapters under the names the workflows load, which fit the tiny FLUX, Chroma, SD3.5 and Anima, and their image encoder."""

import json
from pathlib import Path

from demo import tiny_base

from . import encoders, tiny_anima, tiny_flux, tiny_sd3
from .graphs import TINY
from .published import (
    Shapes,
    anima_lucifer,
    instantx_flux,
    instantx_sd35,
    nested,
    random_tensors,
    write_bin,
    write_safetensors,
    xlabs_flux,
)

SIGLIP = "tiny-siglip"
_BLOCKS = tiny_flux.DOUBLES + tiny_flux.SINGLES
_FILES: dict[str, Shapes] = {
    "ip_adapter.safetensors": xlabs_flux(
        16, blocks=tiny_flux.DOUBLES, width=tiny_flux.WIDTH, image=tiny_base.EMBED_DIM
    ),
    # one head in a block, as a pickle has no place to say how large a head is
    "instantx-sd3.5-large-ip-adapter.bin": instantx_sd35(
        blocks=tiny_sd3.BLOCKS, width=tiny_sd3.WIDTH, image=encoders.WIDTH, tokens=5, dim=64, inner=64, time=16
    ),
    "ip_adapter-Character_Reference-10.safetensors": anima_lucifer(
        blocks=tiny_anima.BLOCKS, width=tiny_anima.WIDTH, image=encoders.WIDTH, text=tiny_anima.TEXT_DIM
    ),
}
_INSTANTX = instantx_flux(blocks=_BLOCKS, width=tiny_flux.WIDTH, image=encoders.WIDTH, tokens=6)


def write(models: Path) -> None:
    """Write them into a models folder."""
    adapters = models / "ipadapter"
    for name, shapes in _FILES.items():
        tensors = random_tensors(shapes, scale=0.05)
        if name.endswith(".bin"):
            write_bin(adapters / f"{TINY}{name}", nested(tensors))
        else:
            metadata = {"ipadapter.spec": json.dumps({"head_dim": tiny_anima.HEAD_DIM})}
            write_safetensors(adapters / f"{TINY}{name}", tensors, metadata if "Character" in name else None)
    # published as a pickle; here it says how large a head is
    metadata = {"ipadapter.spec": json.dumps({"head_dim": tiny_flux.HEAD_DIM})}
    tensors = random_tensors(_INSTANTX, scale=0.05)
    write_safetensors(adapters / f"{TINY}instantx-flux-ip-adapter.safetensors", tensors, metadata)
    encoders.write_siglip_folder(models / "clip_vision" / SIGLIP, patch=16)
