"""The base model: a UNet of SD1.5's layout with few blocks, trained on captions and on perfect image prompts.

It may see the held-out emoji, by caption: a base model knows the world, and the adapters have to carry what they have
not seen. No image prompt shows one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from demo import tiny_base
from trainer.models.processor import install
from trainer.models.sites import discover_sites

from .glances import Outputs, glance_error
from .image_prompts import own_words
from .lessons import Lessons
from .pictures import Picture
from .training import Recipe, train

RECIPE = Recipe(steps=1200, learning_rate=7e-4, weight_decay=0.01, average=0.99)
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
LARGEST_WEIGHT = 60.0  # reached at timestep 925 or so
GLANCE_WEIGHT = 0.2
GUIDED_HEADS = 6  # of 8, in every cross-attention


def train_base(
    pictures: list[Picture], latents: Tensor, text: Mapping[str, Tensor], folder: Path
) -> UNet2DConditionModel:
    """Train from nothing.

    Args:
        latents: (N, 4, 8, 8), of the pictures.
        text: caption to (77, 768): every caption of every picture and HALVES.
    """
    torch.manual_seed(0)
    model = UNet2DConditionModel(**UNET).to(memory_format=torch.channels_last)
    plain = model.attn_processors
    install(model)
    _, attentions = discover_sites(model)
    lessons, schedule = Lessons(pictures, latents, text), DDPMScheduler(**SCHEDULE)
    queries = Outputs([attention.to_q for attention in attentions])

    def loss_at(model: nn.Module, generator: torch.Generator) -> Tensor:
        batch = lessons.draw(BATCH, schedule.config.num_train_timesteps, generator)
        image_kv = [(attention.to_k(batch.words), attention.to_v(batch.words)) for attention in attentions]
        prompt = {"image_kv": image_kv, "image_mask": batch.shown.flatten(1)[..., None].float()}
        error = weighted_error(
            model, schedule, batch.x, batch.t, batch.context, generator, cross_attention_kwargs=prompt
        )
        own, shown = own_words(batch.words.shape[1]), batch.shown.flatten(1)
        glances = sum(
            (glance_error(query, key, own, attention.heads, GUIDED_HEADS) * shown).sum()
            for query, (key, _), attention in zip(queries(), image_kv, attentions, strict=True)
        )
        return error + GLANCE_WEIGHT * glances / len(attentions) / shown.sum().clamp(min=1)

    train("base model", model, loss_at, RECIPE, folder)
    queries.close()
    model.set_attn_processor(plain)
    return model.eval().requires_grad_(False)


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
