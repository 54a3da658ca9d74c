"""Model files for a machine without any: a seeded random base of SD1.5 layout with few blocks, adapters, an encoder.

Nothing here is trained: pictures are noise, but every number is real and the same in ComfyUI and in diffusers. The files
have the layout and the names of the published ones, so that ComfyUI's own loaders and the shipped workflows take them.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

CHECKPOINT = "checkpoints/v1-5-pruned-emaonly-fp16.safetensors"
PLUS_ADAPTER = "ipadapter/ip-adapter-plus_sd15.safetensors"
BASE_ADAPTER = "ipadapter/ip-adapter_sd15.safetensors"
ENCODER = "clip_vision/image_encoder"

CROSS_ATTENTION_DIM = 768
HIDDEN_DIM, EMBED_DIM, NUM_LAYERS, IMAGE_SIZE = 128, 96, 3, 112
RESAMPLER_DIM, DEPTH, NUM_TOKENS = 128, 4, 16  # depth 4 and heads of 64: diffusers reads no others
UNET = {
    "block_out_channels": (320,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "cross_attention_dim": CROSS_ATTENTION_DIM,
}
# The same UNet as ComfyUI reads it off the checkpoint.
COMFY_UNET = {
    "model_channels": 320,
    "channel_mult": [1],
    "num_res_blocks": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
}
NUM_SITES = 4


def import_comfyui(name: str) -> Any:
    """A module of the ComfyUI that COMFYUI_PATH names."""
    if os.environ["COMFYUI_PATH"] not in sys.path:
        sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.cpu = True
    return importlib.import_module(name)


def build_unet(seed: int = 0) -> UNet2DConditionModel:
    """The random UNet in diffusers."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(sample_size=8, **UNET).eval().requires_grad_(False)


def write_all(models: Path) -> None:
    """Write checkpoint, adapters and encoder below a ComfyUI models folder; files already there are kept."""
    for name, write in (
        (CHECKPOINT, write_checkpoint),
        (PLUS_ADAPTER, write_plus_adapter),
        (BASE_ADAPTER, write_base_adapter),
        (ENCODER, write_encoder),
    ):
        path = models / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.part")
            write(part)
            part.replace(path)


def write_checkpoint(path: Path) -> None:
    """UNet, TAESD-layout autoencoder and CLIP-L text encoder in one file of SD1.5's key names."""
    utils = import_comfyui("comfy.utils")
    taesd = import_comfyui("comfy.taesd.taesd")
    names = utils.unet_to_diffusers(COMFY_UNET)
    tensors = {f"model.diffusion_model.{names[name]}": value for name, value in build_unet().state_dict().items()}
    torch.manual_seed(1)
    autoencoder = {name: _random(value) for name, value in taesd.TAESD(latent_channels=4).state_dict().items()}
    *_, weight, bias = (name for name in autoencoder if name.startswith("taesd_decoder."))
    autoencoder[weight] *= 0.1  # muted colours around grey, not saturated ones
    autoencoder[bias] += 0.5
    tensors |= {f"first_stage_model.{name}": value for name, value in autoencoder.items()}
    text = CLIPTextModel(
        CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    )
    tensors |= {f"cond_stage_model.transformer.{_text_name(name)}": value for name, value in text.state_dict().items()}
    save_file({name: value.contiguous().half() for name, value in tensors.items()}, path)


def write_plus_adapter(path: Path) -> None:
    torch.manual_seed(2)
    inner = RESAMPLER_DIM
    shapes = {
        "latents": (1, NUM_TOKENS, RESAMPLER_DIM),
        "proj_in.weight": (RESAMPLER_DIM, HIDDEN_DIM),
        "proj_in.bias": (RESAMPLER_DIM,),
        "proj_out.weight": (CROSS_ATTENTION_DIM, RESAMPLER_DIM),
        "proj_out.bias": (CROSS_ATTENTION_DIM,),
        "norm_out.weight": (CROSS_ATTENTION_DIM,),
        "norm_out.bias": (CROSS_ATTENTION_DIM,),
    }
    for layer in range(DEPTH):
        shapes |= {
            f"layers.{layer}.0.{norm}.{part}": (RESAMPLER_DIM,)
            for norm in ("norm1", "norm2")
            for part in ("weight", "bias")
        }
        shapes |= {
            f"layers.{layer}.0.to_q.weight": (inner, RESAMPLER_DIM),
            f"layers.{layer}.0.to_kv.weight": (2 * inner, RESAMPLER_DIM),
            f"layers.{layer}.0.to_out.weight": (RESAMPLER_DIM, inner),
            f"layers.{layer}.1.0.weight": (RESAMPLER_DIM,),
            f"layers.{layer}.1.0.bias": (RESAMPLER_DIM,),
            f"layers.{layer}.1.1.weight": (4 * RESAMPLER_DIM, RESAMPLER_DIM),
            f"layers.{layer}.1.3.weight": (RESAMPLER_DIM, 4 * RESAMPLER_DIM),
        }
    _save_adapter(path, shapes)


def write_base_adapter(path: Path) -> None:
    torch.manual_seed(3)
    dim = CROSS_ATTENTION_DIM
    shapes = {"proj.weight": (4 * dim, EMBED_DIM), "proj.bias": (4 * dim,), "norm.weight": (dim,), "norm.bias": (dim,)}
    _save_adapter(path, shapes)


def write_encoder(path: Path) -> None:
    torch.manual_seed(4)
    config = CLIPVisionConfig(
        hidden_size=HIDDEN_DIM,
        intermediate_size=4 * HIDDEN_DIM,
        projection_dim=EMBED_DIM,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=14,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(path)


def _save_adapter(path: Path, projection: dict[str, tuple[int, ...]]) -> None:
    tensors = {f"image_proj.{name}": _draw(name, shape) for name, shape in projection.items()}
    for site in range(NUM_SITES):
        for part in ("to_k_ip", "to_v_ip"):
            name = f"ip_adapter.{2 * site + 1}.{part}.weight"
            tensors[name] = _draw(name, (UNET["block_out_channels"][-1], CROSS_ATTENTION_DIM))
    save_file(tensors, path, metadata={"format": "pt"})


def _draw(name: str, shape: tuple[int, ...]) -> Tensor:
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    return torch.randn(shape) / shape[-1] ** 0.5


def _random(like: Tensor) -> Tensor:
    if like.ndim == 0:
        return like  # vae_scale and vae_shift
    return torch.randn(like.shape) / like[0].numel() ** 0.5 if like.ndim > 1 else torch.zeros(like.shape)


def _text_name(name: str) -> str:
    return name if name.startswith("text_model.") else f"text_model.{name}"


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
