"""Whole FLUX.1 models at tiny sizes, in diffusers layout: real classes, random weights, published file names."""

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from transformers import CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

from .tiny_base import tiny_clip, tiny_vae, write_tokenizer
from .tiny_flux import LATENT_CHANNELS, POOLED_DIM, TEXT_DIM, diffusers_flux

TEXT_LENGTH = 16
# as FLUX.1-dev's scheduler/scheduler_config.json; schnell's shift looks at no sizes
SCHEDULES: dict[bool, dict[str, object]] = {
    True: {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15},
    False: {"use_dynamic_shifting": False, "shift": 1.0},
}
_VAE = {
    "latent_channels": LATENT_CHANNELS,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def write_flux_base(folder: Path, *, guidance: bool = True, seed: int = 0) -> Path:
    """Write a model like FLUX.1-dev, or like schnell without guidance, and return its folder."""
    FluxPipeline(
        transformer=diffusers_flux(seed, guidance=guidance),
        vae=tiny_vae(seed, **_VAE),
        scheduler=FlowMatchEulerDiscreteScheduler(**SCHEDULES[guidance]),
        tokenizer=write_tokenizer(folder / "tokenizer_source"),
        tokenizer_2=_t5_tokenizer(),
        text_encoder=tiny_clip(CLIPTextModel, POOLED_DIM, seed, num_hidden_layers=1),
        text_encoder_2=_t5(seed),
    ).save_pretrained(folder)
    return folder


def _t5(seed: int) -> T5EncoderModel:
    torch.manual_seed(seed)
    config = T5Config(vocab_size=len(_t5_tokenizer()), d_model=TEXT_DIM, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def _t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789,."]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=TEXT_LENGTH)
