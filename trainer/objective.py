"""The loss of one batch: a noisy picture in, what the model should answer out, image and text dropped as in the paper."""

# B samples, C latent channels, h w latent size, S feature positions, E feature width

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .backbones.backbone import Backbone
from .backbones.image_prompt import ImagePrompt
from .batch import Batch
from .config import ObjectiveConfig
from .readers.reader import IDENTITY, ReferenceReader


@dataclass(frozen=True, eq=False)
class Condition:
    """What the model is told, ready made.

    Attributes:
        latents: clean latents in the diffusion model's scale (B, C, h, w).
        text, sizes: as in `Batch`.
        features: of the reference, or of "no image" where it was dropped, by name.
    """

    latents: Tensor
    text: Mapping[str, Tensor]
    sizes: Tensor
    features: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Objective:
    """How a batch becomes a loss.

    Attributes:
        no_image: features that stand for a dropped reference, by name, one row each.
        reader: None if every batch brings its features.
        noises: features by name, K rows each, of which a batch says one for each dropped reference; None if none does.
    """

    config: ObjectiveConfig
    base: Backbone
    no_image: Mapping[str, Tensor]
    reader: ReferenceReader | None = None
    noises: Mapping[str, Tensor] | None = None

    def loss(self, adapter: nn.Module, batch: Batch) -> Tensor:
        """Mean loss over the batch, 0-dim, float32."""
        condition = self.condition(batch)
        return self.losses(adapter, condition, batch.noise, batch.times, batch.loss_mask, batch.perturbation).mean()

    def losses(
        self,
        adapter: nn.Module,
        condition: Condition,
        noise: Tensor,
        times: Tensor,
        loss_mask: Tensor | None = None,
        perturbation: Tensor | None = None,
    ) -> Tensor:
        """Loss of each sample (B,), float32; `adapter` is a `TrainableAdapter`."""
        latents = condition.latents
        noisy = self.base.noisy(latents, noise if perturbation is None else noise + perturbation, times)
        image = adapter(condition.features, self.base.adapter_times(times))
        prediction = self.predict(image, condition, noisy, times).float()
        error = self._error(prediction - self.base.target(latents, noise, times), times)
        if loss_mask is not None:
            covered = loss_mask.mean(dim=(1, 2, 3)).clamp_min(1 / loss_mask[0].numel())
            error = error * loss_mask / covered[:, None, None, None]
        return error.mean(dim=(1, 2, 3)) * self.base.weight(times, self.config)

    def predict(self, image: ImagePrompt, condition: Condition, noisy: Tensor, times: Tensor) -> Tensor:
        """The model's output (B, C, h, w) for what an adapter gave; the model must have been prepared by `install`."""
        return self.base.predict(noisy, times, condition.text, condition.sizes, image)

    @torch.no_grad()
    def condition(self, batch: Batch) -> Condition:
        """Encode what the batch does not bring ready made."""
        if batch.latent_mean is not None and batch.latent_std is not None:
            mean, std = batch.latent_mean.float(), batch.latent_std.float()
        else:
            assert batch.pixels is not None
            mean, std = self.base.encode_pixels(batch.pixels)
        features = batch.features
        if features is None:
            assert self.reader is not None
            assert batch.references is not None
            features = self.reader.read(batch.references)
        if batch.drop_identity is not None:
            features = {**features, IDENTITY: without_identities(features[IDENTITY], batch.drop_identity)}
        return Condition(
            latents=self.base.scale_latents(mean + std * batch.latent_noise),
            text=self.base.encode_text(batch.captions) if batch.text is None else batch.text,
            sizes=batch.sizes,
            features=self.drop(features, batch.drop_image, batch.noise_number),
        )

    def drop(
        self, features: Mapping[str, Tensor], dropped: Tensor, noise_number: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Features with "no image" where `dropped` (B,) is true, or with the noises of these numbers (B,); float32."""
        no_image = self.no_image
        if noise_number is not None:
            assert self.noises is not None
            no_image = {name: noises[noise_number] for name, noises in self.noises.items()}
        return {name: _replaced(each.float(), no_image[name], dropped) for name, each in features.items()}

    def _error(self, difference: Tensor, times: Tensor) -> Tensor:
        """Of each value (B, C, h, w): squared, or pseudo-Huber."""
        squares = difference.square()
        if self.config.huber_c is None:
            return squares
        c: Tensor | float = self.config.huber_c
        if self.config.huber_schedule == "exponential":
            c = torch.pow(c, times)[:, None, None, None]
        # is 2c (sqrt(e² + c²) - c), which would lose the digits of small errors
        return 2 * c * squares / ((squares + c * c).sqrt() + c)


def without_identities(identity: Tensor, dropped: Tensor) -> Tensor:
    """Embeddings (B, I) or (B, K, I) with zeros, those of no face, where `dropped` (B, K) is true."""
    return identity.masked_fill(dropped.view(*identity.shape[:-1], 1), 0.0)


def _replaced(features: Tensor, no_image: Tensor, dropped: Tensor) -> Tensor:
    return torch.where(dropped.view(-1, *[1] * (features.ndim - 1)), no_image.to(features), features)
