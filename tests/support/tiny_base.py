"""Whole text-to-image models at tiny sizes, in diffusers layout: real classes, random weights, published file names."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ipadapter_trainer.backbones.unet import UNetBackbone

from .tiny_unet import CONTEXT_DIM, POOLED_DIM, diffusers_unet

VOCABULARY = [
    *"abcdefghijklmnopqrstuvwxyz0123456789,.",
    *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz0123456789,."),
]


def write_base(folder: Path, layout: str = "sd15", *, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write a model of the "sd15" or "sdxl" layout of `tiny_unet` and return its folder."""
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    parts: dict[str, Any] = {
        "unet": diffusers_unet(layout, seed),
        "vae": tiny_vae(seed),
        "scheduler": scheduler,
        "tokenizer": write_tokenizer(folder / "tokenizer_source"),
    }
    if layout == "sd15":
        parts |= {"text_encoder": tiny_clip(CLIPTextModel, CONTEXT_DIM, seed)}
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        StableDiffusionPipeline(**parts).save_pretrained(folder)
    else:
        first, second = 3 * CONTEXT_DIM // 8, 5 * CONTEXT_DIM // 8  # as in 768 and 1280: never the same
        parts |= {"tokenizer_2": parts["tokenizer"], "text_encoder": tiny_clip(CLIPTextModel, first, seed)}
        parts |= {"text_encoder_2": tiny_clip(CLIPTextModelWithProjection, second, seed + 1)}
        StableDiffusionXLPipeline(**parts).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer that spells every word out."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*VOCABULARY, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def tiny_vae(seed: int, **settings: Any) -> AutoencoderKL:
    """8 pixels to a cell."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        **{"latent_channels": 4, **settings},
    ).eval()


def tiny_clip(model_class: Any, width: int, seed: int, **sizes: int) -> Any:
    """A text encoder of single letters."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(VOCABULARY) + 2,
        hidden_size=width,
        intermediate_size=2 * width,
        num_attention_heads=2,
        bos_token_id=len(VOCABULARY),
        eos_token_id=len(VOCABULARY) + 1,
        pad_token_id=len(VOCABULARY) + 1,
        **{"num_hidden_layers": 3, "projection_dim": POOLED_DIM, **sizes},
    )
    return model_class(config).eval()


def around(unet: UNet2DConditionModel) -> UNetBackbone:
    """A UNet alone as the trainer's base."""
    pipeline = StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return UNetBackbone("tiny", pipeline, torch.device("cpu"), torch.float32, pipeline.scheduler)
