"""Tiny random Anima and Cosmos-Predict2 models of ComfyUI's own classes."""

import inspect
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch

BLOCKS, HEADS, HEAD_DIM = 3, 2, 16
WIDTH = HEADS * HEAD_DIM
TEXT_DIM, LATENT_CHANNELS, PATCH = 24, 16, 2
REAL_BLOCKS, REAL_HEADS, REAL_WIDTH = 28, 16, 2048


def description(
    *, blocks: int = BLOCKS, heads: int = HEADS, width: int = WIDTH, text: int = TEXT_DIM
) -> dict[str, Any]:
    """What ComfyUI finds out about such a checkpoint."""
    return {
        "image_model": "anima",
        "max_img_h": 240,
        "max_img_w": 240,
        "max_frames": 128,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "patch_spatial": PATCH,
        "patch_temporal": 1,
        "model_channels": width,
        "concat_padding_mask": True,
        "crossattn_emb_channels": text,
        "pos_emb_cls": "rope3d",
        "pos_emb_learnable": True,
        "pos_emb_interpolation": "crop",
        "use_adaln_lora": True,
        "adaln_lora_dim": 8,
        "num_blocks": blocks,
        "num_heads": heads,
        "extra_per_block_abs_pos_emb": False,
        "rope_h_extrapolation_ratio": 4.0,
        "rope_w_extrapolation_ratio": 4.0,
        "rope_t_extrapolation_ratio": 1.0,
        "rope_enable_fps_modulation": False,
    }


def comfy_anima(seed: int = 0, dtype: torch.dtype = torch.float32, compute: torch.dtype | None = None) -> Any:
    """A random Anima as a ComfyUI MODEL, stored in `dtype`; `compute` if it is to be cast when used.

    Skips the test where ComfyUI's takes no patches.
    """
    return _patcher("Anima", seed, dtype, compute)


def comfy_cosmos() -> Any:
    """A random Cosmos-Predict2, which has Anima's blocks, as a ComfyUI MODEL."""
    return _patcher("CosmosT2IPredict2", 0, torch.float32)


def anima_network(device: str = "cpu", dtype: torch.dtype = torch.float32, **sizes: int) -> Any:
    """The diffusion model alone."""
    import comfy.ops
    from comfy.ldm.anima import model

    if "post_input" not in inspect.getsource(inspect.getmodule(model.MiniTrainDIT)):
        pytest.skip("this ComfyUI's Anima takes no patches")
    with _small_text_adapter(model):
        return model.Anima(
            **description(**sizes), device=torch.device(device), dtype=dtype, operations=comfy.ops.disable_weight_init
        )


def _small_text_adapter(model: Any) -> Any:
    small = partial(model.LLMAdapter, source_dim=8, target_dim=8, model_dim=8, num_layers=1, num_heads=2)
    return mock.patch.object(model, "LLMAdapter", small)


def _patcher(kind: str, seed: int, dtype: torch.dtype, compute: torch.dtype | None = None) -> Any:
    import comfy.model_patcher
    import comfy.supported_models
    from comfy.ldm.anima import model as anima

    if "post_input" not in inspect.getsource(inspect.getmodule(anima.MiniTrainDIT)):
        pytest.skip("this ComfyUI's Anima takes no patches")
    torch.manual_seed(seed)
    config = getattr(comfy.supported_models, kind)(description())
    config.set_inference_dtype(dtype, compute)
    with _small_text_adapter(anima):
        model = config.get_model({}, "", device="cpu").eval().requires_grad_(False)
    for parameter in model.diffusion_model.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape))
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)
