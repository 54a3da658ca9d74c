"""Bytes an adapter keeps on the device while sampling, per reference image, for every supported family.

Real dimensions: ComfyUI's own full-size SD1.5 and SDXL UNets, without weights, patched by IPAApply, and adapters of the
published shapes, each weight one number repeated. Every patch is then called once as a sampler would call it, with
float16 queries, cond and uncond in one batch. No adapter network is on the device meanwhile: a patch holds none, which
`models_while_sampling` shows.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from harness import apply, installed_patches, main, random_tokens
from torch import Tensor

from support import comfy_host, full_unet, published

FAMILIES = ("sd15_base", "sd15_vit_g", "sd15_plus", "sd15_full_face", "sdxl_vit_h", "sdxl_big_g", "sdxl_plus")
FULL_FACE_POSITIONS = 257  # of CLIP ViT-H/14 at 224 pixels; the other families state their number of tokens
LENGTH, TEXT_LENGTH = 4, 77  # queries do not matter here; an SD1.5 or SDXL prompt


def measure(_folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for base, config in full_unet.CONFIGS.items():
        model = full_size_model(config)
        for family in (family for family in FAMILIES if family.startswith(base)):
            details[family] = measure_family(model, published.PUBLISHED[family]())
            result[f"{family}_bytes"] = details[family]["bytes"]
    return {
        **result,
        "counted": "every distinct storage held by the ResidentPlans of the patches on the model, per reference: the "
        "float16 copies of keys and values of all layers, cond and uncond",
        "families": details,
    }


def measure_family(model: Any, shapes: published.Shapes) -> dict[str, Any]:
    build, types = comfy_host.pack("ipadapter_core.network.adapter").build_adapter, comfy_host.pack("nodes.sockets")
    tensors = {name: torch.full((1,), 0.5, dtype=torch.float16).expand(shape) for name, shape in shapes.items()}
    adapter = types.LoadedAdapter("bench", "bench", build(tensors, {}, types.WEIGHT_OPERATIONS), None)
    tokens = adapter.spec.num_tokens or FULL_FACE_POSITIONS
    one, two = (
        resident(apply(model, adapter, random_tokens(adapter, tokens, adapter.spec.cross_attention_dim, references)))
        for references in (1, 2)
    )
    return {
        "bytes": one["bytes"],
        "tokens": tokens,
        "layers": one["layers"],
        "two_references_bytes": two["bytes"],
        "models_while_sampling": one["models"],
    }


def full_size_model(config: dict[str, Any]) -> Any:
    """A UNet on the meta device in ComfyUI, of the kind ComfyUI makes of these diffusers weights."""
    import comfy.model_detection
    import comfy.model_patcher

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**config)  # type: ignore[no-untyped-call]
    detected = comfy.model_detection.model_config_from_diffusers_unet(unet.state_dict())
    detected.set_inference_dtype(torch.float16, None)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(detected.get_model({}, "", device="meta"), cpu, cpu)


def resident(model: Any) -> dict[str, int]:
    """Call every patch as a sampler does and count what stays behind."""
    plans: dict[int, Any] = {}
    patches = [patch for _, patch in installed_patches(model)]
    with torch.inference_mode():
        for patch in patches:
            ((plan, slot),) = patch.branches
            plans[id(plan)] = plan
            site = plan.plan.sites[slot]
            q = torch.zeros(2, LENGTH, site.dim, dtype=torch.float16)
            text = torch.zeros(2, TEXT_LENGTH, site.dim, dtype=torch.float16)
            options = {"n_heads": site.heads, "cond_or_uncond": [1, 0], "activations_shape": [2, site.dim, 2, 2]}
            patch(q, text, text, {**options, "sigmas": torch.ones(2)})
    tensors = [
        tensor
        for plan in plans.values()
        for memo in dataclasses.fields(plan)
        if memo.name != "plan"
        for tensor in tensors_in(getattr(plan, memo.name))
    ]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    masters = {plan.plan.kv.data.untyped_storage().data_ptr() for plan in plans.values()}
    assert storages.keys().isdisjoint(masters), "the copies for the device are not separate from the host's"
    return {
        "bytes": sum(storages.values()),
        "layers": len(patches),
        "models": sum(len(patch.models()) for patch in patches),
    }


def tensors_in(held: Any) -> list[Tensor]:
    """All tensors of a memo: dictionaries and tuples of tensors."""
    if isinstance(held, Tensor):
        return [held]
    parts = held.values() if isinstance(held, dict) else held or ()
    return [tensor for part in parts for tensor in tensors_in(part)]


if __name__ == "__main__":
    main(measure)
