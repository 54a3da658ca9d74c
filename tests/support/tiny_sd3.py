"""Tiny random SD3 models with the same weights in diffusers and in ComfyUI."""

from typing import Any

import torch
from diffusers import SD3Transformer2DModel

from .diffusers_weights import load_into

BLOCKS = HEADS = 3  # ComfyUI makes as many heads as blocks, each of 64 channels
HEAD_DIM = 64
WIDTH = HEADS * HEAD_DIM
TEXT_DIM, POOLED_DIM, LATENT_CHANNELS = 24, 12, 16
POSITIONS = 12  # of a side


def diffusers_sd3(
    seed: int = 0, *, qk_norm: str | None = "rms_norm", dual: tuple[int, ...] = ()
) -> SD3Transformer2DModel:
    """A random SD3 in diffusers, float32.

    Args:
        qk_norm: as SD3.5 has it; None is SD3.
        dual: blocks in which the picture attends to itself as well, as in SD3.5-Medium.
    """
    torch.manual_seed(seed)
    model = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        num_layers=BLOCKS,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_DIM,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=POOLED_DIM,
        out_channels=LATENT_CHANNELS,
        pos_embed_max_size=POSITIONS,
        dual_attention_layers=dual,
        qk_norm=qk_norm,
    )
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0].endswith(("norm_q", "norm_k")):
            torch.nn.init.uniform_(parameter, 0.3, 1.7)  # else a mistake about them would not show
    return model.eval().requires_grad_(False)


def comfy_sd3(
    transformer: SD3Transformer2DModel, dtype: torch.dtype = torch.float32, compute: torch.dtype | None = None
) -> Any:
    """The same weights as a ComfyUI MODEL, stored in `dtype`; `compute` if they are to be cast when used."""
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils

    settings = transformer.config
    description = {
        "in_channels": LATENT_CHANNELS,
        "patch_size": settings.patch_size,
        "out_channels": LATENT_CHANNELS,
        "depth": BLOCKS,
        "input_size": None,
        "adm_in_channels": POOLED_DIM,
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": TEXT_DIM, "out_features": WIDTH},
        },
        "num_patches": POSITIONS**2,
        "pos_embed_max_size": POSITIONS,
        "pos_embed_scaling_factor": None,
        "qk_norm": "rms" if settings.qk_norm else None,
        "x_block_self_attn_layers": list(settings.dual_attention_layers),
    }
    config = comfy.supported_models.SD3(dict(description))
    config.set_inference_dtype(dtype, compute)
    model = config.get_model({}, "", device="cpu").eval().requires_grad_(False)
    load_into(model.diffusion_model, transformer.state_dict(), comfy.utils.mmdit_to_diffusers(description))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
