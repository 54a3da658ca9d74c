"""Seconds of the way from adapter file and picture to patched model: first run, and again after one widget changed.

Through the real nodes, a CLIP image encoder in transformers layout and a plus adapter, both with random weights. After
the change every node but the loader runs again, with a new copy of the picture, which is more than ComfyUI does when it
still has the outputs of the nodes before. Counted are the calls of the image encoder and of the adapter's own networks.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import apply, main, write_adapter
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from support import comfy_host, published, tiny_unet
from support.graphs import PLAIN

WIDTH, IMAGE_SIZE = 384, 224
CHANGES: dict[str, dict[str, Any]] = {
    "strength": {"strength": 0.6},
    "range": {"start_percent": 0.2, "end_percent": 0.8},
    "preset": {"layer_preset": "style"},
    "mask": {"mask": torch.ones(1, 64, 64).tril()},
}
Run = Callable[[Any, Any, Tensor, dict[str, Any]], object]


def measure(folder: Path) -> dict[str, Any]:
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=6, num_attention_heads=6, patch_size=14
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "models" / "clip_vision" / "clip")
    unet = tiny_unet.diffusers_unet("sdxl")
    model = tiny_unet.comfy_model("sdxl", unet)
    shapes = published.tiny_adapter(
        "plus", site_dims=tiny_unet.site_dims(unet), image_dim=WIDTH, num_tokens=16, depth=4, head_dim=64
    )
    name = write_adapter(folder, shapes)
    separate, in_one = (measure_way(model, name, run) for run in (encode_and_apply, apply_image))
    return {
        "cold_s": separate["cold_s"],
        "changed_strength_s": separate["after_change"]["strength"]["seconds"],
        "encoder_calls_after_change": sum(
            counted["encoder_calls"] for way in (separate, in_one) for counted in way["after_change"].values()
        ),
        "IPAEncodeImage and IPAApply": separate,
        "IPAApplyImage": in_one,
    }


def measure_way(model: Any, name: str, run: Run) -> dict[str, Any]:
    comfy_host.pack("nodes.cache").CACHE.clear()
    image = torch.rand(1, 256, 320, 3)
    start = time.perf_counter()
    adapter = comfy_host.run("IPALoadAdapter", adapter_file=name, image_encoder="auto")
    loaded = time.perf_counter() - start
    calls = count_calls(adapter)
    cold = timed(calls, partial(run, model, adapter, image, {}))
    changed = {}
    for change, widgets in CHANGES.items():
        changed[change] = timed(calls, partial(run, model, adapter, image.clone(), widgets))
    assert cold["encoder_calls"] > 0, "the encoder's calls are not counted"
    return {
        "cold_s": round(loaded + cold["seconds"], 4),
        "load_s": round(loaded, 4),
        "cold": cold,
        "after_change": changed,
    }


def count_calls(adapter: Any) -> dict[str, int]:
    """Counts of the forward passes from now on of the encoder, the image projection and the first site's K and V."""
    calls = dict.fromkeys(("encoder_calls", "image_projection_calls", "key_value_calls"), 0)
    (encoder,) = (
        part for part in adapter.encoder.patcher.model.modules() if isinstance(part, CLIPVisionModelWithProjection)
    )
    modules = (encoder, adapter.network.image_proj, adapter.network.site(0).to_k_ip)
    for name, module in zip(calls, modules, strict=True):

        def count(*_: object, name: str = name) -> None:
            calls[name] += 1

        module.register_forward_hook(count)
    return calls


def timed(calls: dict[str, int], run: Callable[[], object]) -> dict[str, Any]:
    calls.update(dict.fromkeys(calls, 0))
    start = time.perf_counter()
    run()
    return {"seconds": round(time.perf_counter() - start, 4), **calls}


def encode_and_apply(model: Any, adapter: Any, image: Tensor, widgets: dict[str, Any]) -> object:
    tokens = comfy_host.run("IPAEncodeImage", adapter=adapter, image=image, crop="center")
    return apply(model, adapter, tokens, **widgets)


def apply_image(model: Any, adapter: Any, image: Tensor, widgets: dict[str, Any]) -> object:
    return comfy_host.run("IPAApplyImage", model=model, adapter=adapter, image=image, **{**PLAIN, **widgets})


if __name__ == "__main__":
    main(measure)
