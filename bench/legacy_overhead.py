"""What the compatibility nodes add to one sampling step, per weight type, scaling, mask and batch of frames.

Counted as in attention_overhead.py, on a tiny UNet of SDXL layout: operations of the second of two steps, less those of
the same step without the adapter, shared out over the layers the weight type adapts.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from attention_overhead import HALF, count_step, refusals_on_meta, tidy
from harness import installed_patches, main, write_adapter

from support import comfy_host, published, tiny_unet

IMAGE_DIM = 24
WIDGETS = {"weight": 0.8, "weight_type": "linear", "start_at": 0.0, "end_at": 1.0, "embeds_scaling": "V only"}
FRAMES = 4


def measure(folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)  # the model is too small to share out
    unet = tiny_unet.diffusers_unet("sdxl")
    model = tiny_unet.comfy_model("sdxl", unet)
    shapes = published.tiny_adapter("base", site_dims=tiny_unet.site_dims(unet), image_dim=IMAGE_DIM)
    payload = comfy_host.run("IPAdapterModelLoader", ipadapter_file=write_adapter(folder, shapes))
    plain = {batch: count_step(model, batch) for batch in (1, FRAMES)}
    measured = {}
    for name, (node, batch, widgets) in cases().items():
        embeds = torch.randn(2, batch if node.endswith("Batch") else 1, IMAGE_DIM)
        patched = comfy_host.run(
            node, model=model, ipadapter=payload, pos_embed=embeds[0], neg_embed=embeds[1], **WIDGETS | widgets
        )
        measured[name] = case(patched, batch, plain[batch])
    kinds = ("kernels_per_layer", "aten_per_layer", "copies_per_step")
    return {**{kind: max(found[kind] for found in measured.values()) for kind in kinds}, **measured}


def cases() -> dict[str, tuple[str, int, dict[str, Any]]]:
    """Node, latents and widgets of every case."""
    weight_types = comfy_host.pack("ipadapter_core.legacy.weight_types").OFFERED_WEIGHT_TYPES
    scalings = comfy_host.pack("ipadapter_core.strength.scaling").SCALINGS
    one, each = "IPAdapterEmbeds", "IPAdapterEmbedsBatch"
    weights = [0.5 + number / 10 for number in range(FRAMES)]
    return {
        **{name: (one, 1, {"weight_type": name}) for name in weight_types},
        **{name: (one, 1, {"embeds_scaling": name}) for name in scalings},
        "mask": (one, 1, {"attn_mask": HALF}),
        "frames": (each, FRAMES, {"weight": weights}),
        "frames and masks": (each, FRAMES, {"weight": weights, "attn_mask": HALF.repeat(FRAMES, 1, 1)}),
    }


def case(patched: Any, batch: int, plain: Counter[str]) -> dict[str, float]:
    layers = len(list(installed_patches(patched)))
    counted = count_step(patched, batch)
    return {
        "kernels_per_layer": tidy((counted["kernels"] - plain["kernels"]) / layers),
        "aten_per_layer": tidy((counted["aten"] - plain["aten"]) / layers),
        "copies_per_step": counted["copies"] - plain["copies"] + refusals_on_meta(patched, batch),
        "layers": layers,
    }


if __name__ == "__main__":
    main(measure)
