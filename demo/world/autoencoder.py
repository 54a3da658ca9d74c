"""The autoencoder: TAESD's layout (diffusers' AutoencoderTiny), 64 x 64 pixels to 8 x 8 x 4 latents."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional

from .training import Recipe, train

CROP = 32  # pieces of 32 x 32 pixels: a quarter of the work, and nothing in here sees farther


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        batch: pieces.
        noise: deviation of what is added to latents, whose own is 1: the diffusion model's errors look like that. In the
            decoder's own part the largest; each picture has its own.
    """

    recipe: Recipe
    batch: int
    noise: float


STAGES = {
    "rough": Stage(Recipe(steps=900, learning_rate=1e-3, average=0.99), batch=32, noise=0.1),
    "fine": Stage(Recipe(steps=1300, learning_rate=1.5e-3, average=0.99, seed=1), batch=16, noise=0.03),
}

DECODER = Stage(Recipe(steps=800, learning_rate=6e-4, warmup=50, average=0.98, seed=2), batch=8, noise=0.3)


def train_autoencoder(pixels: Tensor, folder: Path) -> AutoencoderTiny:
    """Train on pixels (N, 3, 64, 64), uint8; `train_decoder` comes after it."""
    torch.manual_seed(0)
    model = AutoencoderTiny()
    for name, stage in STAGES.items():
        train(f"autoencoder, {name}", model, partial(_loss, pixels, stage), stage.recipe, folder / name)
    return model.eval().requires_grad_(False)


def train_decoder(model: AutoencoderTiny, pixels: Tensor, latents: Tensor, folder: Path) -> AutoencoderTiny:
    """Teach the decoder, on whole pictures, to make clean ones of noisy latents; latents stay what they are.

    Args:
        latents: (N, 4, 8, 8), of the pixels.
    """

    def loss_at(decoder: nn.Module, generator: torch.Generator) -> Tensor:
        numbers = torch.randint(len(pixels), (DECODER.batch,), generator=generator)
        some = latents[numbers]
        noise = DECODER.noise * torch.rand(len(some), 1, 1, 1, generator=generator)
        noised = some + noise * torch.randn(some.shape, generator=generator)
        error = decoder(noised.contiguous(memory_format=torch.channels_last)) - to_model(pixels[numbers])
        return error.abs().mean() + error.square().mean()

    decoder = model.decoder.requires_grad_(True).to(memory_format=torch.channels_last)
    train("autoencoder, decoder", decoder, loss_at, DECODER.recipe, folder)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def latents_of(model: AutoencoderTiny, pixels: Tensor) -> Tensor:
    """(N, 3, 64, 64), uint8, to latents (N, 4, 8, 8), float32."""
    return torch.cat([model.encode(to_model(some)).latents for some in pixels.split(64)])


def to_model(pixels: Tensor) -> Tensor:
    """uint8 to -1..1."""
    return pixels.float() / 127.5 - 1


def _loss(pixels: Tensor, stage: Stage, model: nn.Module, generator: torch.Generator) -> Tensor:
    batch = to_model(_pieces(pixels, stage.batch, generator))
    latents = model.encoder(batch)
    noise = stage.noise * torch.randn(latents.shape, generator=generator)
    error = model.decoder(latents + noise) - batch
    return error.abs().mean() + error.square().mean() + 0.01 * _distance_to_normal(latents)


def _pieces(pixels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    numbers = torch.randint(len(pixels), (count,), generator=generator)
    corners = torch.randint(pixels.shape[-1] - CROP + 1, (count, 2), generator=generator)
    return torch.stack(
        [
            pixels[number, :, top : top + CROP, left : left + CROP]
            for number, (top, left) in zip(numbers, corners.tolist(), strict=True)
        ]
    )


def _distance_to_normal(latents: Tensor) -> Tensor:
    """Of each channel's mean and deviation to 0 and 1, as the diffusion model expects them."""
    channels = latents.transpose(0, 1).flatten(1)
    mean, deviation = channels.mean(1), channels.std(1)
    return functional.mse_loss(mean, torch.zeros_like(mean)) + functional.mse_loss(deviation, torch.ones_like(mean))
