"""Diffusion transformers at their real sizes, without weights: on the meta device, in ComfyUI's classes."""

from typing import Any

import torch

_FLUX = {
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "txt_ids_dims": [],
}
# name: ComfyUI's class, its configuration
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "FLUX": (
        "Flux",
        {
            **_FLUX,
            "image_model": "flux",
            "in_channels": 16,
            "out_channels": 16,
            "vec_in_dim": 768,
            "guidance_embed": True,
        },
    ),
    "Chroma": (
        "Chroma",
        {
            **_FLUX,
            "image_model": "chroma",
            "in_channels": 64,
            "out_channels": 64,
            "in_dim": 64,
            "out_dim": 3072,
            "hidden_dim": 5120,
            "n_layers": 5,
            "vec_in_dim": None,
        },
    ),
}


def comfy_model(name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A MODEL of a key of `CONFIGS`."""
    import comfy.model_patcher
    import comfy.supported_models

    kind, config = CONFIGS[name]
    description = getattr(comfy.supported_models, kind)(dict(config))
    description.set_inference_dtype(dtype, None)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(description.get_model({}, "", device="meta"), cpu, cpu)
