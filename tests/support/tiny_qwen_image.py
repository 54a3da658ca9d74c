"""Tiny random Qwen-Image models with the same weights in diffusers and in ComfyUI."""

import inspect
from typing import Any

import pytest
import torch
from diffusers import QwenImageTransformer2DModel

BLOCKS, HEADS, HEAD_DIM = 3, 2, 16
WIDTH = HEADS * HEAD_DIM
TEXT_DIM, LATENT_CHANNELS, PATCH = 24, 16, 2
_SIZES: dict[str, Any] = {
    "patch_size": PATCH,
    "in_channels": LATENT_CHANNELS * PATCH**2,
    "out_channels": LATENT_CHANNELS,
    "num_layers": BLOCKS,
    "attention_head_dim": HEAD_DIM,
    "num_attention_heads": HEADS,
    "joint_attention_dim": TEXT_DIM,
    "axes_dims_rope": (4, 6, 6),
}


def diffusers_qwen_image(seed: int = 0) -> QwenImageTransformer2DModel:
    """A random Qwen-Image in diffusers, float32."""
    torch.manual_seed(seed)
    model = QwenImageTransformer2DModel(**_SIZES)
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0].endswith(("norm_q", "norm_k", "norm_added_q", "norm_added_k")):
            torch.nn.init.uniform_(parameter, 0.3, 1.7)  # else a mistake about them would not show
    return model.eval().requires_grad_(False)


def asks_about_queries() -> bool:
    """Whether this ComfyUI's Qwen-Image asks the patches that its adapters need."""
    import comfy.ldm.qwen_image.model

    return "attn1_patch" in inspect.getsource(comfy.ldm.qwen_image.model)


def comfy_qwen_image(
    transformer: QwenImageTransformer2DModel,
    dtype: torch.dtype = torch.float32,
    compute: torch.dtype | None = None,
    *,
    in_any: bool = False,
) -> Any:
    """The same weights as a ComfyUI MODEL, stored in `dtype`; `compute` if they are to be cast when used.

    Skips the test where ComfyUI's asks no patches, but for `in_any`.
    """
    import comfy.model_patcher
    import comfy.supported_models

    if not in_any and not asks_about_queries():
        pytest.skip("this ComfyUI's Qwen-Image asks no patches about its queries")
    config = comfy.supported_models.QwenImage({"image_model": "qwen_image", **_SIZES})
    config.set_inference_dtype(dtype, compute)
    model = config.get_model({}, "", device="cpu").eval().requires_grad_(False)
    model.diffusion_model.load_state_dict(transformer.state_dict(), strict=True)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
