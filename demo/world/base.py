"""The base model: a UNet of SD1.5's layout with few blocks, trained on captions and pictures.

It may see the held-out emoji: a base model knows the world, and the adapters have to carry what they have not seen.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from demo import tiny_base

from .pictures import Picture
from .training import LossAt, Recipe, train

RECIPE = Recipe(steps=1200, learning_rate=6e-4, weight_decay=0.01, average=0.995)
BATCH = 32
UNET = {"sample_size": 8, **tiny_base.UNET}
SCHEDULE = {  # SD1.5's
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "clip_sample": False,
}
HALVES = "two halves"  # caption of a picture whose halves have nothing to do with each other
HALVES_SHARE = 0.15
SHARES = {"full": 0.3, "colors": 0.45, "style_category": 0.06, "category": 0.06, "style": 0.05, "empty": 0.08}
"""What a caption says, and how often. The colours of a grid stand for the long descriptions that large models are taught
with: they make cross-attention carry where things are, which is what an adapter uses it for."""
LARGEST_WEIGHT = 60.0  # reached at timestep 925 or so


def captions_of(picture: Picture) -> dict[str, str]:
    """By the keys of SHARES."""
    return {
        "full": picture.caption,
        "colors": f"{picture.style} emoji, {picture.colors}",
        "style_category": f"{picture.style} emoji, {picture.category}",
        "category": picture.category,
        "style": f"{picture.style} emoji",
        "empty": "",
    }


def train_base(pictures: list[Picture], latents: Tensor, text: dict[str, Tensor], folder: Path) -> UNet2DConditionModel:
    """Train the first part, on captions.

    Args:
        latents: (N, 4, 8, 8), of the pictures.
        text: caption to (77, 768): every caption of every picture and HALVES.
    """
    torch.manual_seed(0)
    model = UNet2DConditionModel(**UNET).to(memory_format=torch.channels_last)
    captions = [captions_of(picture) for picture in pictures]
    return train("base model", model, _loss(latents, captions, text), RECIPE, folder)


def weighted_error(
    model: nn.Module,
    schedule: DDPMScheduler,
    x: Tensor,
    t: Tensor,
    context: Tensor,
    generator: torch.Generator,
    **beside: Any,
) -> Tensor:
    """Error of the predicted noise, with the weights that predicting v would give (arXiv 2202.00512).

    Plain weights hardly count the steps in much noise, where captions, and later references, decide what is drawn.

    Args:
        x: latents (B, 4, 8, 8).
        t: (B,).
        context: (B, 77, 768).
        beside: what else the model takes.
    """
    noise = torch.randn(x.shape, generator=generator)
    noised = schedule.add_noise(x, noise, t)
    predicted = model(noised.contiguous(memory_format=torch.channels_last), t, context, **beside).sample
    snr = compute_snr(schedule, t)[:, None, None, None]
    return ((predicted - noise).square() * (1 + 1 / snr).clamp(max=LARGEST_WEIGHT)).mean()


def _loss(latents: Tensor, captions: Sequence[Mapping[str, str]], text: Mapping[str, Tensor]) -> LossAt:
    schedule = DDPMScheduler(**SCHEDULE)
    kinds, odds = list(SHARES), torch.tensor(list(SHARES.values()))

    def loss_at(model: nn.Module, generator: torch.Generator) -> Tensor:
        left, right = torch.randint(len(captions), (2, BATCH), generator=generator)
        halved = torch.rand(BATCH, generator=generator) < HALVES_SHARE
        kind = torch.multinomial(odds, BATCH, replacement=True, generator=generator)
        x = latents[left].clone()
        middle = x.shape[-1] // 2
        x[halved, ..., middle:] = latents[right[halved], ..., middle:]
        said = [HALVES if half else captions[i][kinds[k]] for i, half, k in zip(left, halved, kind, strict=True)]
        context = torch.stack([text[caption] for caption in said]).float()
        t = torch.randint(schedule.config.num_train_timesteps, (BATCH,), generator=generator)
        return weighted_error(model, schedule, x, t, context, generator)

    return loss_at
