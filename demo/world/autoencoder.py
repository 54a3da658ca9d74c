"""The autoencoder: TAESD's layout (diffusers' AutoencoderTiny), 64 x 64 pixels to 8 x 8 x 4 latents."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional

from .training import Recipe, train


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        batch: pieces.
        side: of a piece, in pixels: 32 are a quarter of the work, whole pictures of 64 teach what is far apart.
        noise: least and largest deviation of what is added to the latents of a piece, whose own is 1: the diffusion
            model's errors look like that.
    """

    recipe: Recipe
    batch: int
    side: int
    noise: tuple[float, float]


STAGES = {
    "rough": Stage(Recipe(steps=900, learning_rate=1e-3, average=0.99), batch=32, side=32, noise=(0.1, 0.1)),
    "whole": Stage(Recipe(steps=2000, learning_rate=8e-4, average=0.98, seed=1), batch=8, side=64, noise=(0.0, 0.2)),
    "polish": Stage(Recipe(steps=1800, learning_rate=8e-4, average=0.99, seed=2), batch=4, side=64, noise=(0.0, 0.2)),
}
# The decoder alone, on latents that no longer change: half the work of a step, and what an adapter draws is farther off.
DECODER_STAGES = {
    "decoder": Stage(Recipe(steps=4000, learning_rate=8e-4, average=0.99, seed=3), batch=4, side=64, noise=(0.0, 0.3)),
    "fine": Stage(Recipe(steps=2400, learning_rate=5e-4, average=0.995, seed=4), batch=4, side=64, noise=(0.0, 0.3)),
}


def train_autoencoder(pixels: Tensor, folder: Path) -> AutoencoderTiny:
    """Train on pixels (N, 3, 64, 64), uint8; `train_decoder` does the rest."""
    torch.manual_seed(0)
    model = AutoencoderTiny().to(memory_format=torch.channels_last)
    for name, stage in STAGES.items():
        train(f"autoencoder, {name}", model, partial(_loss, pixels, stage), stage.recipe, folder / name)
    return model.eval().requires_grad_(False)


def train_decoder(model: AutoencoderTiny, pixels: Tensor, latents: Tensor, folder: Path) -> AutoencoderTiny:
    """Train the decoder further, in place.

    Args:
        latents: (N, 4, 8, 8), `latents_of` the pixels.
    """
    model.decoder.requires_grad_()
    for name, stage in DECODER_STAGES.items():
        loss_at = partial(_decoder_loss, pixels, latents, stage)
        train(f"autoencoder, {name}", model.decoder, loss_at, stage.recipe, folder / name)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def latents_of(model: AutoencoderTiny, pixels: Tensor) -> Tensor:
    """(N, 3, 64, 64), uint8, to latents (N, 4, 8, 8), float32."""
    return torch.cat([model.encode(to_model(some)).latents for some in pixels.split(64)])


def to_model(pixels: Tensor) -> Tensor:
    """uint8 to -1..1."""
    return pixels.float() / 127.5 - 1


def _loss(pixels: Tensor, stage: Stage, model: nn.Module, generator: torch.Generator) -> Tensor:
    batch = to_model(_pieces(pixels, stage, generator)).contiguous(memory_format=torch.channels_last)
    latents = model.encoder(batch)
    drawn = model.decoder(_noisy(latents, stage, generator))
    return _distance(drawn, batch) + 0.01 * _distance_to_normal(latents)


def _decoder_loss(
    pixels: Tensor, latents: Tensor, stage: Stage, decoder: nn.Module, generator: torch.Generator
) -> Tensor:
    numbers = torch.randint(len(pixels), (stage.batch,), generator=generator)
    drawn = decoder(_noisy(latents[numbers], stage, generator))
    return _distance(drawn, to_model(pixels[numbers]))


def _noisy(latents: Tensor, stage: Stage, generator: torch.Generator) -> Tensor:
    least, largest = stage.noise
    noise = least + (largest - least) * torch.rand(len(latents), 1, 1, 1, generator=generator)
    return latents + noise * torch.randn(latents.shape, generator=generator)


def _distance(drawn: Tensor, pictures: Tensor) -> Tensor:
    error = drawn - pictures
    return error.abs().mean() + error.square().mean()


def _pieces(pixels: Tensor, stage: Stage, generator: torch.Generator) -> Tensor:
    numbers = torch.randint(len(pixels), (stage.batch,), generator=generator)
    corners = torch.randint(pixels.shape[-1] - stage.side + 1, (stage.batch, 2), generator=generator)
    return torch.stack(
        [
            pixels[number, :, top : top + stage.side, left : left + stage.side]
            for number, (top, left) in zip(numbers, corners.tolist(), strict=True)
        ]
    )


def _distance_to_normal(latents: Tensor) -> Tensor:
    """Of each channel's mean and deviation to 0 and 1, as the diffusion model expects them."""
    channels = latents.transpose(0, 1).flatten(1)
    mean, deviation = channels.mean(1), channels.std(1)
    return functional.mse_loss(mean, torch.zeros_like(mean)) + functional.mse_loss(deviation, torch.ones_like(mean))
