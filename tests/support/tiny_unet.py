"""Tiny random UNets of SD1.5 and SDXL layout, the same weights in diffusers and in ComfyUI."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

CHANNELS = 32
CONTEXT_DIM = 16
POOLED_DIM = 1280


@dataclass(frozen=True)
class Layout:
    """One UNet, described for both programs."""

    comfy_class: str
    comfy: dict[str, Any]
    diffusers: dict[str, Any]


_COMMON_COMFY = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": CHANNELS,
    "context_dim": CONTEXT_DIM,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
}
# For what is the same on either: SDXL's in the short run.
EITHER_LAYOUT = (pytest.param("sd15", marks=pytest.mark.long), "sdxl")
_DOWN, _DOWN_ATTENTION = "DownBlock2D", "CrossAttnDownBlock2D"
_UP, _UP_ATTENTION = "UpBlock2D", "CrossAttnUpBlock2D"

LAYOUTS = {
    "sd15": Layout(
        "SD15",
        {
            **_COMMON_COMFY,
            "adm_in_channels": None,
            "channel_mult": [1, 2, 4, 4],
            "num_res_blocks": [2, 2, 2, 2],
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
            "transformer_depth_middle": 1,
            "num_heads": 8,
            "num_head_channels": -1,
            "use_linear_in_transformer": False,
        },
        {
            "block_out_channels": (32, 64, 128, 128),
            "down_block_types": (_DOWN_ATTENTION,) * 3 + (_DOWN,),
            "up_block_types": (_UP,) + (_UP_ATTENTION,) * 3,
            "attention_head_dim": 8,  # diffusers means the number of heads
            "cross_attention_dim": CONTEXT_DIM,
        },
    ),
    "sdxl": Layout(
        "SDXL",
        {
            **_COMMON_COMFY,
            "adm_in_channels": 2816,
            "num_classes": "sequential",
            "channel_mult": [1, 2, 4],
            "num_res_blocks": [2, 2, 2],
            "transformer_depth": [0, 0, 1, 1, 2, 2],
            "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
            "transformer_depth_middle": 2,
            "num_heads": -1,
            "num_head_channels": 64,
            "use_linear_in_transformer": True,
        },
        {
            "block_out_channels": (32, 64, 128),
            "down_block_types": (_DOWN,) + (_DOWN_ATTENTION,) * 2,
            "up_block_types": (_UP_ATTENTION,) * 2 + (_UP,),
            "attention_head_dim": (1, 1, 2),
            "transformer_layers_per_block": (0, 1, 2),
            "cross_attention_dim": CONTEXT_DIM,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
}


def diffusers_unet(layout: str, seed: int = 0) -> UNet2DConditionModel:
    """A random UNet in diffusers, float32."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(sample_size=16, **LAYOUTS[layout].diffusers).eval().requires_grad_(False)


@lru_cache
def layout_dims(layout: str) -> tuple[int, ...]:
    """`site_dims` of a layout's UNet, which is made for it once."""
    return site_dims(diffusers_unet(layout))


def comfy_model(
    layout: str, unet: UNet2DConditionModel, dtype: torch.dtype = torch.float32, compute: torch.dtype | None = None
) -> Any:
    """The same weights as a ComfyUI MODEL, stored in `dtype`; `compute` if they are to be cast when used."""
    import comfy.model_patcher
    import comfy.supported_models
    import comfy.utils

    description = LAYOUTS[layout]
    config = getattr(comfy.supported_models, description.comfy_class)(dict(description.comfy))
    config.set_inference_dtype(dtype, compute)
    model = config.get_model({}, "", device="cpu").eval()
    names = comfy.utils.unet_to_diffusers(dict(description.comfy))
    weights = {names[name]: tensor.to(dtype) for name, tensor in unet.state_dict().items()}
    model.diffusion_model.load_state_dict(weights, strict=True)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def site_dims(unet: UNet2DConditionModel) -> tuple[int, ...]:
    """Channels of the cross-attention layers in the order of diffusers' attn_processors (checkpoint order)."""
    modules = dict(unet.named_modules())
    names = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    return tuple(modules[name].to_q.out_features for name in names)
