"""The loss of one batch: noise in, noise (or v) out, image and text dropped as the paper does."""

# B samples, C latent channels, h w latent size

from dataclasses import dataclass

import torch
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from .batch import Batch
from .config import ObjectiveConfig
from .models.base import Base
from .models.image_encoder import ImageEncoder


@dataclass(frozen=True, eq=False)
class Condition:
    """What the UNet is told, ready made.

    Attributes:
        latents: clean latents in the diffusion model's scale (B, C, h, w).
        text, pooled, time_ids: as in `Batch`; the last two for SDXL only.
        features: of the reference, or of "no image" where it was dropped.
    """

    latents: Tensor
    text: Tensor
    pooled: Tensor | None
    time_ids: Tensor
    features: Tensor


@dataclass(frozen=True, eq=False)
class Objective:
    """How a batch becomes a loss.

    Attributes:
        no_image: features that stand for a dropped reference, (1, E) or (1, S, E).
        encoder: None if every batch brings its features.
        noises: features (K, E) or (K, S, E) of which a batch says one for each dropped reference; None if none does.
    """

    config: ObjectiveConfig
    base: Base
    no_image: Tensor
    encoder: ImageEncoder | None = None
    noises: Tensor | None = None

    def loss(self, adapter: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over the batch, 0-dim, float32."""
        condition = self.condition(batch)
        return self.losses(adapter, condition, batch.noise, batch.timesteps, batch.loss_mask, batch.perturbation).mean()

    def losses(
        self,
        adapter: nn.Module,
        condition: Condition,
        noise: Tensor,
        timesteps: Tensor,
        loss_mask: Tensor | None = None,
        perturbation: Tensor | None = None,
    ) -> Tensor:
        """Loss of each sample (B,), float32; `adapter` maps features to the K/V of every site."""
        schedule, latents = self.base.schedule, condition.latents
        noisy = schedule.add_noise(latents, noise if perturbation is None else noise + perturbation, timesteps)
        prediction = self.predict(adapter(condition.features), condition, noisy, timesteps).float()
        is_v = schedule.config.prediction_type == "v_prediction"
        target = schedule.get_velocity(latents, noise, timesteps) if is_v else noise
        error = self._error(prediction - target, timesteps)
        if loss_mask is not None:
            covered = loss_mask.mean(dim=(1, 2, 3)).clamp_min(1 / loss_mask[0].numel())
            error = error * loss_mask / covered[:, None, None, None]
        return error.mean(dim=(1, 2, 3)) * self._weights(timesteps)

    def predict(self, kv: object, condition: Condition, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The UNet's output (B, C, h, w) for given K/V; the UNet must have been prepared by `processor.install`."""
        dtype = self.base.dtype
        added = None
        if condition.pooled is not None:
            # sizes stay as they are: in bfloat16 1333 pixels would be 1336
            added = {"text_embeds": condition.pooled.to(dtype), "time_ids": condition.time_ids.float()}
        output: Tensor = self.base.unet(
            noisy.to(dtype),
            timesteps,
            condition.text.to(dtype),
            added_cond_kwargs=added,
            cross_attention_kwargs={"image_kv": kv},
        ).sample
        return output

    @torch.no_grad()
    def condition(self, batch: Batch) -> Condition:
        """Encode what the batch does not bring ready made."""
        if batch.latent_mean is not None and batch.latent_std is not None:
            mean, std = batch.latent_mean.float(), batch.latent_std.float()
        else:
            assert batch.pixels is not None
            mean, std = self.base.encode_pixels(batch.pixels)
        if batch.text is not None:
            text, pooled = batch.text, batch.pooled
        else:
            text, pooled = self.base.encode_text(batch.captions)
        features = batch.features
        if features is None:
            assert self.encoder is not None
            assert batch.reference_pixels is not None
            features = self.encoder.features(batch.reference_pixels)
        return Condition(
            latents=self.base.scale_latents(mean + std * batch.latent_noise),
            text=text,
            pooled=pooled,
            time_ids=batch.time_ids,
            features=self.drop(features.float(), batch.drop_image, batch.noise_number),
        )

    def drop(self, features: Tensor, dropped: Tensor, noise_number: Tensor | None = None) -> Tensor:
        """Features with "no image" where `dropped` (B,) is true, or with the noises of these numbers (B,)."""
        no_image = self.no_image
        if noise_number is not None:
            assert self.noises is not None
            no_image = self.noises[noise_number]
        return torch.where(dropped.view(-1, *[1] * (features.ndim - 1)), no_image.to(features), features)

    def _error(self, difference: Tensor, timesteps: Tensor) -> Tensor:
        """Of each value (B, C, h, w): squared, or pseudo-Huber."""
        squares = difference.square()
        if self.config.huber_c is None:
            return squares
        c: Tensor | float = self.config.huber_c
        if self.config.huber_schedule == "exponential":
            c = torch.pow(c, timesteps / self.base.schedule.config.num_train_timesteps)[:, None, None, None]
        # is 2c (sqrt(e² + c²) - c), which would lose the digits of small errors
        return 2 * c * squares / ((squares + c * c).sqrt() + c)

    def _weights(self, timesteps: Tensor) -> Tensor:
        """What the error of the clean latents weighs, over SNR for noise and over SNR + 1 for v.

        That is min(SNR, gamma) (arXiv 2303.09556, section 3.4) or sqrt(SNR): 1 / sqrt(SNR) for noise, as in arXiv
        2310.08442, which says nothing of v.
        """
        gamma = self.config.min_snr_gamma
        if gamma is None and not self.config.debiased:
            return torch.ones_like(timesteps, dtype=torch.float32)
        snr = compute_snr(self.base.schedule, timesteps)
        is_v = self.base.schedule.config.prediction_type == "v_prediction"
        weights: Tensor = (snr.sqrt() if gamma is None else snr.clamp_max(gamma)) / (snr + 1 if is_v else snr)
        return weights
