"""Bytes an adapter keeps on the device while sampling, per reference image, for every supported family.

Real dimensions: ComfyUI's own full-size SD1.5 and SDXL UNets, without weights, patched by IPAApply, and adapters of the
published shapes, each weight one number repeated. Every patch is then called once as a sampler would call it, with
float16 queries, cond and uncond in one batch. No adapter network is on the device meanwhile: a patch holds none, which
`models_while_sampling` shows; but for an animation with a reference for every frame (`frames`), whose keys are made
for the window that is sampled.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from harness import applied, apply, installed_patches, main, random_tokens

from support import comfy_host, full_transformers, full_unet, published

FAMILIES = ("sd15_base", "sd15_vit_g", "sd15_plus", "sd15_full_face", "sdxl_vit_h", "sdxl_big_g", "sdxl_plus")
# with the kind of base model
TRANSFORMERS = {
    "xlabs_v1": "FLUX",
    "xlabs_v2": "FLUX",
    "instantx_flux": "FLUX",
    "anima_lucifer": "Anima",
    "z_image": "Z-Image",
    "qwen_image": "Qwen-Image",
}
TIMED = {"instantx_sd35": "SD3"}
PATCHES = 32 * 32  # of SigLIP 2 base at 512 pixels: LuciferTC's adapter makes one token of each
SIGLIP_POSITIONS = 27 * 27  # of so400m at 384 pixels
FULL_FACE_POSITIONS = 257  # of CLIP ViT-H/14 at 224 pixels; the other families state their number of tokens
FRAMES, WINDOW = 300, 16
LENGTH, TEXT_LENGTH = 4, 77  # queries do not matter here; an SD1.5 or SDXL prompt


def measure(_folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for base, config in full_unet.CONFIGS.items():
        model = full_size_model(config)
        for family in (family for family in FAMILIES if family.startswith(base)):
            details[family] = measure_family(model, published.PUBLISHED[family]())
            result[f"{family}_bytes"] = details[family]["bytes"]
    frames = measure_frames(model, published.PUBLISHED["sdxl_plus"]())
    for family in TRANSFORMERS:
        details[family] = measure_transformer(family)
        result[f"{family}_row_bytes"] = details[family]["bytes"]
    for family in TIMED:
        details[family] = measure_timed(family)
        result[f"{family}_row_bytes"] = details[family]["bytes"]
    return {
        **result,
        "frames": frames,
        "counted": "every distinct storage a sampling run holds, per reference: the float16 copies of keys and values of "
        "all layers, cond and uncond; of an animation those of one window, and its tokens on the host",
        "families": details,
    }


def measure_family(model: Any, shapes: published.Shapes) -> dict[str, Any]:
    adapter = load(shapes)
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


def measure_transformer(family: str) -> dict[str, Any]:
    """An adapter of published shape on a model of the real size, whose weights are on the meta device."""
    backbone, dtype = TRANSFORMERS[family], torch.bfloat16
    model, adapter = full_transformers.comfy_model(backbone), load(published.PUBLISHED[family]())
    count, width = adapter.spec.num_tokens or PATCHES, adapter.spec.cross_attention_dim
    patched = apply(model, adapter, random_tokens(adapter, count, width))
    (plan,) = applied(patched).plans
    run_module, rows = comfy_host.pack("nodes.patching.run"), comfy_host.pack("ipadapter_core.branch.rows")
    run = run_module.Run(applied(patched), None)
    step = run_module.Step(run, {})
    cond = rows.Rows((rows.Group(0, rows.COND),), 1)
    for slot in range(len(plan.sites)):
        run.resident(plan, torch.device("cpu"), dtype).kv(slot, cond, step, each_row=True)
    return {
        "bytes": run.num_bytes,
        "tokens": count,
        "layers": len(plan.sites),
        "file_bytes": sum(tensor.nbytes for tensor in adapter.network.state_dict().values()),
        "models_while_sampling": len(patched.model_patches_models()),
    }


def measure_timed(family: str) -> dict[str, Any]:
    """An adapter whose keys and values are made anew at every step, so that its network has to stay."""
    model, adapter = full_transformers.comfy_model(TIMED[family]), load(published.PUBLISHED[family]())
    sites = comfy_host.pack("nodes.patching.application").fitting_sites(model, adapter).sites
    features = comfy_host.pack("ipadapter_core.branch.tokens").ImageTokens(
        *torch.zeros(2, 1, SIGLIP_POSITIONS, adapter.spec.image_dim), adapter.adapter_id
    )
    every = {site.index: features for site in sites}
    source = comfy_host.pack("ipadapter_core.branch.timed").TimedKV(sites, dict.fromkeys(every), adapter.network, every)
    weights = {name: sum(x.nbytes for x in part.parameters()) for name, part in adapter.network.named_children()}
    return {
        "bytes": source.num_bytes(1, torch.bfloat16.itemsize) // 2,
        "tokens": adapter.spec.num_tokens,
        "layers": len(sites),
        "stays_bytes": weights,
        "stays_because": "keys and values depend on the noise level: the resampler, the norms and the projections of every "
        "block run at every step; ComfyUI's model management may leave a part of them on the host",
    }


def load(shapes: published.Shapes) -> Any:
    """An adapter of these shapes, each weight one number repeated."""
    build, types = comfy_host.pack("ipadapter_core.network.adapter").build_adapter, comfy_host.pack("nodes.sockets")
    tensors = {name: torch.full((1,), 0.5, dtype=torch.float16).expand(shape) for name, shape in shapes.items()}
    return types.LoadedAdapter("bench", "bench", build(tensors, {}, types.WEIGHT_OPERATIONS), None)


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


def resident(model: Any, latents: int = 1, frames: Sequence[int] = (0,)) -> dict[str, int]:
    """Call every patch as a sampler does and count what the run keeps.

    Args:
        latents: per conditioning.
        frames: numbers of the latents in a window, one window behind the other.
    """
    run_module, patches = comfy_host.pack("nodes.patching.run"), [patch for _, patch in installed_patches(model)]
    sites = {site.address: site for site in applied(model).sites.sites}
    run, most = run_module.Run(applied(model), model.get_model_object("model_sampling")), 0
    with torch.inference_mode():
        for start in range(0, len(frames), latents):
            window = {"sub_idxs": list(frames[start : start + latents])}
            options = model.model_options["transformer_options"]
            options = options | {"cond_or_uncond": [1, 0], "ad_params": window, "sigmas": torch.ones(2)}
            step = run_module.Step(run, options)
            for patch in patches:
                site = sites[patch.address]
                q = torch.zeros(2 * latents, LENGTH, site.dim, dtype=torch.float16)
                text = torch.zeros(2 * latents, TEXT_LENGTH, site.dim, dtype=torch.float16)
                more = {
                    "n_heads": site.heads,
                    "activations_shape": [2 * latents, site.dim, 2, 2],
                    run_module.STEP: step,
                }
                patch(q, text, text, options | more)
            most = max(most, run.num_bytes)
    return {
        "bytes": most,
        "layers": len(patches),
        "models": len({id(network) for patch in patches for network in patch.models()}),
    }


def measure_frames(model: Any, shapes: published.Shapes) -> dict[str, int]:
    """An animation with a reference for every frame, sampled in windows."""
    adapter = load(shapes)
    application, strength = (
        comfy_host.pack("nodes.patching.application"),
        comfy_host.pack("ipadapter_core.strength.site").SiteStrength(1.0),
    )
    sites = application.fitting_sites(model, adapter)
    tokens = random_tokens(adapter, adapter.spec.num_tokens, adapter.spec.cross_attention_dim, FRAMES)
    numbers = range(len(sites.sites))
    of_site, strengths = dict.fromkeys(numbers, tokens), dict.fromkeys(numbers, strength)
    patched = application.patch_sites(model, sites, adapter, of_site, strengths, application.Limits(), per_frame=True)
    (plan,) = applied(patched).plans
    counted = resident(patched, WINDOW, [*range(WINDOW), *range(WINDOW - 4, 2 * WINDOW - 4)])  # two windows
    return {
        "frames": FRAMES,
        "window": WINDOW,
        "device_bytes": counted["bytes"],
        "foretold_bytes": plan.kv.num_bytes(WINDOW, 2),
        "host_bytes": sum(each.num_bytes for each in set(plan.kv.tokens.values())),
        "models_while_sampling": counted["models"],
    }


if __name__ == "__main__":
    main(measure)
