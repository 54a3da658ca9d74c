"""The same pictures from diffusers: its text encoder, UNet, image encoder, IP-Adapter and autoencoder.

Noise, sigmas and the sampler's own steps are ComfyUI's, so that what differs is the models and the adapter's work.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from demo import scenes
from demo.models import DIFFUSERS, ENCODER
from support.studio import NOISES, Studio

CPU = torch.device("cpu")


class DiffusersStudio:
    """The demo's base with one adapter, as a user of diffusers opens them: float32.

    Args:
        models: the demo's models folder.
        adapter: file.
        studio: gives noise and sigmas.
    """

    def __init__(self, models: Path, adapter: Path, studio: Studio) -> None:
        encoder = CLIPVisionModelWithProjection.from_pretrained(models / ENCODER, torch_dtype=torch.float32)
        size = encoder.config.image_size
        self._pipeline: Any = StableDiffusionPipeline.from_pretrained(
            models / DIFFUSERS,
            image_encoder=encoder,
            feature_extractor=CLIPImageProcessor(size=size, crop_size=size),
            torch_dtype=torch.float32,
        )
        self._pipeline.load_ip_adapter(
            str(adapter.parent), subfolder="", weight_name=adapter.name, image_encoder_folder=None
        )
        self._schedule = studio.model.get_model_object("model_sampling")

    @torch.inference_mode()
    def draw(self, reference: Image.Image, prompt: str = "", strength: float = 1.0) -> Tensor:
        """Pictures (NOISES, H, W, 3), 0..1, of the noises that `Studio.draw` takes."""
        import comfy.k_diffusion.sampling
        import comfy.sample
        import comfy.samplers

        pipeline = self._pipeline
        pipeline.set_ip_adapter_scale(strength)
        cond, uncond = pipeline.encode_prompt(prompt, CPU, NOISES, True, "")
        text = torch.cat((uncond, cond))
        embeds = pipeline.prepare_ip_adapter_image_embeds([reference], None, CPU, NOISES, True)

        def denoise(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            scaled = (x / (sigma[0] ** 2 + 1) ** 0.5).repeat(2, 1, 1, 1)
            timestep = self._schedule.timestep(sigma[:1])
            noise = pipeline.unet(scaled, timestep, text, added_cond_kwargs={"image_embeds": embeds}).sample
            without, towards = noise.chunk(2)
            return x - sigma[0] * (without + scenes.CFG * (towards - without))

        sigmas = comfy.samplers.calculate_sigmas(self._schedule, scenes.SCHEDULER, scenes.STEPS)
        empty = torch.zeros(NOISES, 4, scenes.SIZE // 8, scenes.SIZE // 8)
        noise = comfy.sample.prepare_noise(empty, scenes.SEED)
        start = self._schedule.noise_scaling(sigmas[:1], noise, empty, max_denoise=True)
        latents = getattr(comfy.k_diffusion.sampling, f"sample_{scenes.SAMPLER}")(denoise, start, sigmas, disable=True)
        pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
