"""Tiny random FLUX and Chroma models: FLUX with the same weights in diffusers and in ComfyUI."""

import inspect
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel

from .diffusers_weights import load_into

DOUBLES, SINGLES, HEADS, HEAD_DIM = 2, 3, 2, 16
WIDTH = HEADS * HEAD_DIM
TEXT_DIM = 4096  # as published: by it adapters are told from a UNet's
POOLED_DIM, LATENT_CHANNELS, PATCH = 12, 4, 2
AXES = [4, 6, 6]  # of the positions; together a head
CHROMA_MODULATIONS = 344  # which ComfyUI's class makes, however many blocks there are

# what both kinds are told of their blocks
_BLOCKS = {
    "context_in_dim": TEXT_DIM,
    "hidden_size": WIDTH,
    "mlp_ratio": 4.0,
    "num_heads": HEADS,
    "depth": DOUBLES,
    "depth_single_blocks": SINGLES,
    "axes_dim": AXES,
    "theta": 10000,
    "patch_size": PATCH,
    "qkv_bias": True,
    "txt_ids_dims": [],
}


def diffusers_flux(seed: int = 0, *, guidance: bool = True, beside: int = 0) -> FluxTransformer2DModel:
    """A random FLUX in diffusers, float32.

    Args:
        guidance: whether it is told the guidance, as all but schnell are.
        beside: channels that it reads beside the latent, as Fill does those of a masked picture.
    """
    torch.manual_seed(seed)
    return (
        FluxTransformer2DModel(
            patch_size=1,
            in_channels=(LATENT_CHANNELS + beside) * PATCH**2,
            out_channels=LATENT_CHANNELS * PATCH**2,
            num_layers=DOUBLES,
            num_single_layers=SINGLES,
            attention_head_dim=HEAD_DIM,
            num_attention_heads=HEADS,
            joint_attention_dim=TEXT_DIM,
            pooled_projection_dim=POOLED_DIM,
            guidance_embeds=guidance,
            axes_dims_rope=tuple(AXES),
        )
        .eval()
        .requires_grad_(False)
    )


def comfy_flux(
    transformer: FluxTransformer2DModel, dtype: torch.dtype = torch.float32, compute: torch.dtype | None = None
) -> Any:
    """The same weights as a ComfyUI MODEL, stored in `dtype`; `compute` if they are to be cast when used."""
    import comfy.supported_models
    import comfy.utils

    guidance, channels = transformer.config.guidance_embeds, transformer.config.in_channels // PATCH**2
    kind = comfy.supported_models.Flux if guidance else comfy.supported_models.FluxSchnell
    description = {
        **_BLOCKS,
        "image_model": "flux",
        "in_channels": channels,
        "out_channels": LATENT_CHANNELS,
        "vec_in_dim": POOLED_DIM,
        "guidance_embed": guidance,
    }
    model = _model(kind, description, dtype, compute)
    load_into(model.model.diffusion_model, transformer.state_dict(), comfy.utils.flux_to_diffusers(description))
    return model


def comfy_chroma(seed: int = 0, dtype: torch.dtype = torch.float32, compute: torch.dtype | None = None) -> Any:
    """A random Chroma as a ComfyUI MODEL; dtypes as `comfy_flux`'s."""
    import comfy.supported_models

    torch.manual_seed(seed)
    description = {
        **_BLOCKS,
        "image_model": "chroma",
        "in_channels": LATENT_CHANNELS * PATCH**2,
        "out_channels": LATENT_CHANNELS * PATCH**2,
        "in_dim": 64,
        "out_dim": WIDTH,
        "hidden_dim": 16,
        "n_layers": 1,
        "vec_in_dim": None,
    }
    model = _model(comfy.supported_models.Chroma, description, dtype, compute)
    for parameter in model.model.diffusion_model.parameters():
        parameter.copy_(0.1 * torch.randn(parameter.shape))
    return model


def _model(description_class: Any, description: dict[str, Any], dtype: torch.dtype, compute: torch.dtype | None) -> Any:
    import comfy.ldm.flux.layers
    import comfy.model_patcher

    if "attn1_patch" not in inspect.getsource(comfy.ldm.flux.layers):
        pytest.skip("this ComfyUI's FLUX asks no patches about its queries")
    config = description_class(dict(description))
    config.set_inference_dtype(dtype, compute)
    config.latent_format.latent_channels = LATENT_CHANNELS
    model = config.get_model({}, "", device="cpu").eval().requires_grad_(False)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
