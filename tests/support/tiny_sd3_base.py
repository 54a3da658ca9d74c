"""Whole SD3 models at tiny sizes, in diffusers layout: real classes, random weights."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import (
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from .tiny_base import tiny_clip, tiny_vae, write_tokenizer
from .tiny_sd3 import LATENT_CHANNELS, POOLED_DIM, POSITIONS, TEXT_DIM
from .trained import COLORS, colors

HEAD_DIM, HEADS, BLOCKS = 16, 2, 2
WIDTH = HEADS * HEAD_DIM
CLIP_WIDTHS = (4, POOLED_DIM - 4)
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
LETTERS = [
    ("<pad>", 0.0),
    ("</s>", 0.0),
    ("<unk>", 0.0),
    ("▁", -2.0),
    *((c, -3.0) for c in "abcdefghijklmnop 0123456789"),
]
_VAE = {
    "latent_channels": LATENT_CHANNELS,
    "scaling_factor": 1.5,
    "shift_factor": 0.06,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def write_sd3_base(
    folder: Path,
    *,
    absent: Collection[str] = (),
    transformer: SD3Transformer2DModel | None = None,
    seed: int = 0,
) -> Path:
    """Write a model and return its folder.

    Args:
        absent: of `ENCODERS`, those that it lacks.
        transformer: `sd3_transformer` if not given.
    """
    parts: dict[str, Any] = {
        "transformer": transformer or sd3_transformer(seed),
        "vae": tiny_vae(seed, **_VAE),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
        "text_encoder": _clip(CLIP_WIDTHS[0], seed),
        "text_encoder_2": _clip(CLIP_WIDTHS[1], seed + 1),
        "text_encoder_3": _t5(seed),
        "tokenizer": write_tokenizer(folder / "tokenizer_source"),
        "tokenizer_2": write_tokenizer(folder / "tokenizer_source"),
        "tokenizer_3": T5Tokenizer(vocab=LETTERS, extra_ids=0),
    }
    for name in absent:
        parts[name] = parts[name.replace("text_encoder", "tokenizer")] = None
    StableDiffusion3Pipeline(**parts).save_pretrained(folder)
    return folder


def sd3_transformer(
    seed: int = 0, *, channels: int = LATENT_CHANNELS, qk_norm: str | None = "rms_norm", dual: tuple[int, ...] = ()
) -> SD3Transformer2DModel:
    """Smaller than `tiny_sd3`'s; ComfyUI could not have its heads."""
    torch.manual_seed(seed)
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=BLOCKS,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=HEADS,
        joint_attention_dim=TEXT_DIM,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=POOLED_DIM,
        pos_embed_max_size=POSITIONS,
        dual_attention_layers=dual,
        qk_norm=qk_norm,
    )
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[0].endswith(("norm_q", "norm_k")):
            torch.nn.init.uniform_(parameter, 0.3, 1.7)  # else a mistake about them would not show
    return model.eval()


def write_teachable_sd3(folder: Path) -> Path:
    """A random, frozen model that sees colours: to be used with the autoencoder in its folder `COLORS`."""
    write_sd3_base(folder, transformer=sd3_transformer(channels=4))
    colors().save_pretrained(folder / COLORS)
    return folder


def _clip(width: int, seed: int) -> Any:
    return tiny_clip(CLIPTextModelWithProjection, width, seed, num_hidden_layers=2, projection_dim=width)


def _t5(seed: int) -> T5EncoderModel:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(LETTERS),
        d_model=TEXT_DIM,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config).eval()
