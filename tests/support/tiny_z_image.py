"""Tiny random Z-Image models with the same weights in diffusers and in ComfyUI."""

from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from diffusers.models.transformers.transformer_z_image import TimestepEmbedder

from .diffusers_weights import load_into

BLOCKS, REFINERS, HEADS, HEAD_DIM = 3, 1, 4, 96
WIDTH = HEADS * HEAD_DIM  # of which both classes make an MLP of the same width, and more than of a timestep's
TEXT_DIM, LATENT_CHANNELS, PATCH, PADDED_TO = 24, 16, 2, 32
_TIME = 256
AXES = [32, 32, 32]  # of the positions; together a head


def diffusers_z_image(seed: int = 0, channels: int = LATENT_CHANNELS) -> ZImageTransformer2DModel:
    """A random Z-Image in diffusers, float32."""
    torch.manual_seed(seed)
    model = ZImageTransformer2DModel(
        all_patch_size=(PATCH,),
        in_channels=channels,
        dim=WIDTH,
        n_layers=BLOCKS,
        n_refiner_layers=REFINERS,
        n_heads=HEADS,
        n_kv_heads=HEADS,
        cap_feat_dim=TEXT_DIM,
        axes_dims=AXES,
        axes_lens=[256, 64, 64],
    )
    model.t_embedder = TimestepEmbedder(_TIME, mid_size=WIDTH)  # diffusers makes it as wide as the real model's
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0].endswith(("norm_q", "norm_k")):
            torch.nn.init.uniform_(parameter, 0.3, 1.7)  # else a mistake about them would not show
        if name.endswith("pad_token"):
            torch.nn.init.normal_(parameter)
    return model.eval().requires_grad_(False)


def description() -> dict[str, Any]:
    """What ComfyUI finds out about such a checkpoint."""
    return {
        "image_model": "lumina2",
        "patch_size": PATCH,
        "in_channels": LATENT_CHANNELS,
        "dim": WIDTH,
        "cap_feat_dim": TEXT_DIM,
        "n_layers": BLOCKS,
        "n_refiner_layers": REFINERS,
        "qk_norm": True,
        "n_heads": HEADS,
        "n_kv_heads": HEADS,
        "axes_dims": AXES,
        "axes_lens": [256, 64, 64],
        "rope_theta": 256.0,
        "ffn_dim_multiplier": 8.0 / 3.0,
        "z_image_modulation": True,
        "time_scale": 1000.0,
        "pad_tokens_multiple": PADDED_TO,
    }


def comfy_z_image(
    transformer: ZImageTransformer2DModel, dtype: torch.dtype = torch.float32, compute: torch.dtype | None = None
) -> Any:
    """The same weights as a ComfyUI MODEL, stored in `dtype`; `compute` if they are to be cast when used."""
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils

    config = comfy.supported_models.ZImage(description())
    config.set_inference_dtype(dtype, compute)
    model = config.get_model({}, "", device="cpu").eval().requires_grad_(False)
    load_into(model.diffusion_model, transformer.state_dict(), comfy.utils.z_image_to_diffusers(description()))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
