"""`Batch`: what one forward of the training loop needs, made by the data workers and moved to the device as it is."""

# B samples, C latent channels, h w latent size, H W pixels, S encoder input, E feature width

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from . import named


@dataclass(frozen=True)
class Skipped:
    """A picture that could not be used: its sample's key, its path or what stands for it, and why."""

    key: str
    path: str
    reason: str


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Samples of one size. Of each pair (cached, raw) exactly one is there.

    Attributes:
        positions: number of each sample in the whole run; all that is random about it follows from seed and number.
        keys: name of each sample, for messages and the record of skipped ones.
        captions: texts, "" where the text is dropped.
        pixels: targets (B, 3, H, W), -1..1.
        latent_mean, latent_std: what the autoencoder gives for them (B, C, h, w), not yet scaled.
        references: what is read of references before the encoder, by name, as it wants it: "pixels" (B, 3, S, S).
        features: what the encoder gives for them, by name: "features" (B, E) or (B, S, E).
        text: text embeddings by name, as the model's `encode_text` gives them; those of "" where the text is dropped.
        drop_image: (B,) bool, true where the image is dropped and what stands for that is not in its place already.
        drop_identity: (B, K) bool, which of the K faces of each reference lose their embedding; None if none may.
        noise_number: (B,) which of the objective's noises stands for a dropped image; None if none does.
        latent_noise, noise: (B, C, h, w), for the autoencoder's sample and for the diffusion.
        times: of the diffusion (B,), 0 (clean) to 1 (noise), float32.
        sizes: (B, 6): original height, width, crop top, left, target height, width.
        loss_mask: (B, 1, h, w), 0..1.
        perturbation: (B, C, h, w), noise that the model's input has and the target has not.
        skipped: broken pictures met on the way, whose places other samples took.
    """

    positions: tuple[int, ...]
    keys: tuple[str, ...]
    captions: tuple[str, ...]
    drop_image: Tensor
    latent_noise: Tensor
    noise: Tensor
    times: Tensor
    sizes: Tensor
    pixels: Tensor | None = None
    latent_mean: Tensor | None = None
    latent_std: Tensor | None = None
    references: Mapping[str, Tensor] | None = None
    features: Mapping[str, Tensor] | None = None
    text: Mapping[str, Tensor] | None = None
    loss_mask: Tensor | None = None
    perturbation: Tensor | None = None
    noise_number: Tensor | None = None
    drop_identity: Tensor | None = None
    skipped: tuple[Skipped, ...] = ()

    def to(self, device: torch.device) -> "Batch":
        """On a device, without waiting for the copy where the memory is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """As torch's DataLoader wants it from a batch class."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {
            name: change(value) if isinstance(value, Tensor) else named.each(value, change)
            for name, value in values.items()
            if isinstance(value, Tensor | Mapping)
        }
        return replace(self, **changed)
