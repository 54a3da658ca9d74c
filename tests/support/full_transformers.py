"""Diffusion transformers at their real sizes, without weights: on the meta device, in ComfyUI's classes."""

from typing import Any

import torch

from . import tiny_anima, tiny_z_image

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
_ANIMA = {"heads": 16, "width": 2048, "text": 1024}
_Z_IMAGE = {
    "dim": 3840,
    "cap_feat_dim": 2560,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
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
    "SD3": (
        "SD3",
        {
            "in_channels": 16,
            "patch_size": 2,
            "out_channels": 16,
            "depth": 38,
            "input_size": None,
            "adm_in_channels": 2048,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 2432},
            },
            "num_patches": 192**2,
            "pos_embed_max_size": 192,
            "pos_embed_scaling_factor": None,
            "qk_norm": "rms",
            "x_block_self_attn_layers": [],
        },
    ),
    "Z-Image": ("ZImage", {**tiny_z_image.description(), **_Z_IMAGE}),
    "Qwen-Image": ("QwenImage", {"image_model": "qwen_image", "in_channels": 64, "num_layers": 60}),
    "Anima": ("Anima", {**tiny_anima.description(**_ANIMA, blocks=28), "adaln_lora_dim": 256}),
    "Anima of 36 blocks": ("Anima", {**tiny_anima.description(**_ANIMA, blocks=36), "adaln_lora_dim": 256}),
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
