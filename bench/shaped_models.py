"""Models of SD1.5's shape with random weights, and pictures, for the trainer's benches."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from support.tiny_base import write_tokenizer

_DOWN, _UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """Sizes of an image encoder."""

    vision_width: int
    vision_layers: int
    vision_embed: int
    vision_size: int


@dataclass(frozen=True, kw_only=True)
class Shape(VisionShape):
    """Sizes of what is measured.

    Attributes:
        channels: of the UNet's levels, each with cross-attention; `resnets` layers each way down, one more up.
        vae_channels, vae_resnets: of the autoencoder's levels.
        text_layers: of the text encoder.
        picture: side of the JPEG files.
    """

    channels: tuple[int, ...]
    resnets: int
    context_dim: int
    vae_channels: tuple[int, ...]
    vae_resnets: int
    text_layers: int
    resolution: int
    picture: int
    batch_size: int


SD15_LIKE = Shape(
    channels=(320, 640, 1280),
    resnets=2,
    context_dim=768,
    vae_channels=(128, 256, 512, 512),
    vae_resnets=2,
    text_layers=4,
    vision_width=1280,
    vision_layers=6,
    vision_embed=1024,
    vision_size=224,
    resolution=256,
    picture=768,
    batch_size=1,
)
SMALL = Shape(
    channels=(32, 64),
    resnets=1,
    context_dim=32,
    vae_channels=(16, 16, 16, 16),
    vae_resnets=1,
    text_layers=1,
    vision_width=32,
    vision_layers=1,
    vision_embed=24,
    vision_size=28,
    resolution=64,
    picture=80,
    batch_size=2,
)


def write_models(folder: Path, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> tuple[Path, Path]:
    """Write base and image encoder; their folders. Stored in `dtype`, to be loaded as any other."""
    write_base(folder, shape, dtype)
    vision_model(shape).to(dtype).save_pretrained(folder / "encoder")
    return folder / "base", folder / "encoder"


def write_base(folder: Path, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> Path:
    torch.manual_seed(0)
    tokenizer = write_tokenizer(folder / "tokenizer")
    pipeline = StableDiffusionPipeline(
        unet=_random(UNet2DConditionModel, _unet_config(shape)).to(dtype),
        vae=_random(AutoencoderKL, _vae_config(shape)).to(dtype),
        text_encoder=CLIPTextModel(_text_config(shape, len(tokenizer))).to(dtype),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "base")
    return folder / "base"


def vision_model(shape: VisionShape) -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=shape.vision_width,
        intermediate_size=4 * shape.vision_width,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=max(1, shape.vision_width // 80),
        image_size=shape.vision_size,
        patch_size=14,
        projection_dim=shape.vision_embed,
    )
    return CLIPVisionModelWithProjection(config).eval()


def write_pictures(folder: Path, count: int, side: int) -> Path:
    """JPEG files of smooth random colours with captions, as the tutorial's JSON list; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    items = []
    for number in range(count):
        colors = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        colors.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=95)
        items.append({"image_file": f"{number}.jpg", "text": f"picture {number} of some colours"})
    path = folder / "pictures.json"
    path.write_text(json.dumps(items))
    return path


def describe(shape: Shape) -> str:
    """What is like the real models and what is not."""
    levels = len(shape.channels)
    sites = levels * shape.resnets + levels * (shape.resnets + 1) + 1
    return (
        f"UNet of {levels} levels {shape.channels} with {shape.resnets} resnets each (SD1.5: (320, 640, 1280, 1280), "
        f"2), 8 heads, {shape.context_dim}-wide text, {sites} cross-attention layers (SD1.5: 16); autoencoder "
        f"{shape.vae_channels} with {shape.vae_resnets} resnets (SD1.5: (128, 256, 512, 512), 2); text encoder of "
        f"{shape.text_layers} layers (12); image encoder {shape.vision_width} wide with {shape.vision_layers} layers "
        f"(ViT-H: 1280, 32)"
    )


def _unet_config(shape: Shape) -> dict[str, Any]:
    levels = len(shape.channels)
    return {
        "block_out_channels": shape.channels,
        "down_block_types": (_DOWN,) * levels,
        "up_block_types": (_UP,) * levels,
        "layers_per_block": shape.resnets,
        "attention_head_dim": 8,  # diffusers means the number of heads
        "cross_attention_dim": shape.context_dim,
        "sample_size": shape.resolution // 8,
    }


def _vae_config(shape: Shape) -> dict[str, Any]:
    levels = len(shape.vae_channels)
    return {
        "block_out_channels": shape.vae_channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": shape.vae_resnets,
        "norm_num_groups": min(32, shape.vae_channels[0]),
        "latent_channels": 4,
        "sample_size": shape.resolution,
    }


def _text_config(shape: Shape, vocabulary: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=shape.context_dim,
        intermediate_size=4 * shape.context_dim,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=max(1, shape.context_dim // 64),
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


def _random(model_class: Any, config: dict[str, Any]) -> Any:
    return model_class(**config).eval()
