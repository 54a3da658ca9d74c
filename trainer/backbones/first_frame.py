"""Models whose autoencoder is Qwen-Image's."""

# B samples, C latent channels, h w latent size, H W pixels

import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from ..models.base import brought
from .backbone import Backbone


class FirstFrame(Backbone):
    """It is one for videos, of which a picture is the first frame; each channel has a scale of its own."""

    vaes = (AutoencoderKLQwenImage,)

    @property
    def latent_channels(self) -> int:
        return int(self.vae.config.z_dim)

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = super().encode_pixels(pixels[:, :, None])
        return mean.squeeze(2), std.squeeze(2)

    def scale_latents(self, latents: Tensor) -> Tensor:
        mean, std = self._scale(latents)
        return (latents - mean) / std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        mean, std = self._scale(latents)
        with brought(self.vae, self.device):
            frames = (latents * std + mean)[:, :, None].to(self.device, self.vae.dtype)
            pixels: Tensor = self.vae.decode(frames).sample.float()
        return (pixels.squeeze(2) / 2 + 0.5).clamp(0, 1)

    def _scale(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel (C, 1, 1)."""
        values = (self.vae.config.latents_mean, self.vae.config.latents_std)
        mean, std = (torch.tensor(value, dtype=latents.dtype, device=latents.device)[:, None, None] for value in values)
        return mean, std
