"""SD1.5, SDXL, FLUX.1 and their encoders at full size on the meta device: shapes without data, for counting."""

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from ipadapter_trainer.backbones.flux_attention import install as install_in_flux
from ipadapter_trainer.backbones.unet_attention import install
from support.full_unet import CONFIGS
from support.tiny_base import write_tokenizer

META = torch.device("meta")
ENCODER_SIZE = 224  # pixels


@functools.cache
def open_pipeline(unet: str) -> Any:
    """SD1.5 or SDXL as their published configs describe them, without weights."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_tokenizer(Path(folder))
    common = {"tokenizer": tokenizer, "scheduler": None}
    with META:
        common |= {"unet": UNet2DConditionModel(**CONFIGS[unet]), "vae": vae(), "text_encoder": _text_l()}
        if unet == "sdxl":
            pipeline: Any = StableDiffusionXLPipeline(**common, tokenizer_2=tokenizer, text_encoder_2=_text_big_g())
        else:
            pipeline = StableDiffusionPipeline(
                **common, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    install(pipeline.unet)
    return pipeline


@functools.cache
def open_flux() -> Any:
    """FLUX.1-dev likewise: diffusers' defaults of its transformer, T5-XXL of 512 tokens, CLIP-L."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = write_tokenizer(Path(folder))
    with META:
        pipeline = FluxPipeline(
            transformer=FluxTransformer2DModel(guidance_embeds=True),
            vae=vae(16),
            text_encoder=_text_l(),
            text_encoder_2=_t5_xxl(),
            tokenizer=tokenizer,
            tokenizer_2=T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], model_max_length=512),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        )
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)
    install_in_flux(pipeline.transformer)
    return pipeline


@functools.cache
def vision_h() -> Any:
    """CLIP ViT-H/14."""
    config = CLIPVisionConfig(
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=16,
        image_size=ENCODER_SIZE,
        patch_size=14,
        projection_dim=1024,
    )
    with META:
        return CLIPVisionModelWithProjection(config).requires_grad_(False)


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """The adapter's forward switches autocast off, which the meta device does not know."""
    with mock.patch.object(torch, "autocast", return_value=contextlib.nullcontext()):
        yield


def vae(channels: int = 4) -> Any:
    """SD1.5's autoencoder, or one like it with more channels."""
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=channels,
    )


def _t5_xxl() -> Any:
    return T5EncoderModel(
        T5Config(d_model=4096, d_ff=10240, d_kv=64, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu")
    )


def _text_l() -> Any:
    return CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    )


def _text_big_g() -> Any:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=20,
            projection_dim=1280,
        )
    )
