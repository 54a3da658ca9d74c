"""A picture of the demo once more with diffusers: its UNet, its IP-Adapter, and an Euler loop to be read at a glance.

ComfyUI gives the text conditioning, the noise and the sigmas; nothing of this pack's nodes takes part. Prints nothing;
writes the latent as safetensors.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from demo.models import CHECKPOINT, DIFFUSERS, ENCODER, PLUS_ADAPTER
from demo.tiny_base import import_comfyui
from ipadapter_core.encoder.folder import CLIP_STATISTICS
from ipadapter_core.encoder.pixels import PixelFormat, check_image, encoder_pixels

PENULTIMATE = -2


def sample(models: Path, image: Path, settings: dict[str, Any]) -> Tensor:
    """The latent (1, 4, h, w) that ComfyUI's KSampler gives with IPAApply at these settings."""
    comfyui = {name: import_comfyui(f"comfy.{name}") for name in ("sd", "sample", "samplers")}
    model, clip, _, _ = comfyui["sd"].load_checkpoint_guess_config(str(models / CHECKPOINT))
    with torch.inference_mode():
        texts = (clip.encode_from_tokens(clip.tokenize(settings[side])).float() for side in ("negative", "positive"))
        text = torch.cat(list(texts))  # uncond, cond
        schedule = model.get_model_object("model_sampling")
        sigmas = comfyui["samplers"].calculate_sigmas(schedule, settings["scheduler"], settings["steps"])
        empty = torch.zeros(1, 4, settings["height"] // 8, settings["width"] // 8)
        noise = comfyui["sample"].prepare_noise(empty, settings["seed"])
        unet = _unet_with_adapter(models, settings["strength"])
        added = {"image_embeds": [_image_features(models, image)[:, None]]}  # (2, references, S, E)

        x = schedule.noise_scaling(sigmas[:1], noise, empty, max_denoise=True)
        for sigma, next_sigma in itertools.pairwise(sigmas):
            scaled = (x / (sigma**2 + 1) ** 0.5).repeat(2, 1, 1, 1)
            uncond, cond = unet(scaled, schedule.timestep(sigma), text, added_cond_kwargs=added).sample.chunk(2)
            x = x + (uncond + settings["cfg"] * (cond - uncond)) * (next_sigma - sigma)
        return model.model.latent_format.process_out(x)


def _unet_with_adapter(models: Path, strength: float) -> UNet2DConditionModel:
    unet = UNet2DConditionModel.from_pretrained(models / DIFFUSERS, subfolder="unet", torch_dtype=torch.float32).eval()
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, value in load_file(models / PLUS_ADAPTER).items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    unet._load_ip_adapter_weights([parts], low_cpu_mem_usage=False)
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [strength]
    return unet


def _image_features(models: Path, image: Path) -> Tensor:
    """(2, S, E): no picture, then the picture, as the plus adapters were trained."""
    encoder = CLIPVisionModelWithProjection.from_pretrained(models / ENCODER, torch_dtype=torch.float32)
    with Image.open(image) as picture:
        pixels = torch.from_numpy(np.asarray(picture.convert("RGB"))).float() / 255
    pixel_format = PixelFormat(encoder.config.image_size, *CLIP_STATISTICS)
    pixels = encoder_pixels(check_image(pixels), pixel_format, "center")
    both = torch.cat((torch.zeros_like(pixels), pixels))
    return encoder(both, output_hidden_states=True).hidden_states[PENULTIMATE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    save_file({"latent": sample(args.models, args.image, args.settings)}, args.output)


if __name__ == "__main__":
    main()
