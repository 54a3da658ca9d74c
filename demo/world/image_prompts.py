"""The base model's second part: to follow image prompts at all, before any adapter exists.

Large models are taught with billions of described pictures, and their cross-attention carries where what is. A tiny one
learns that from a perfect image prompt: words that are the picture's own latents, a few cells in each, seen through a
second attention as an adapter's are (arXiv 2308.06721, equation 4), but with the text's own `to_k` and `to_v`, so that
nothing is added to the model. An adapter has to learn the rest: to make such words from an encoder's features.
Held-out emoji are never shown in such words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from trainer.models.processor import install
from trainer.models.sites import discover_sites

from .base import BATCH, HALVES, SCHEDULE, UNET, captions_of, weighted_error
from .pictures import OTHER_STYLE, Picture
from .training import LossAt, Recipe, train

RECIPE = Recipe(steps=1000, learning_rate=5e-4, weight_decay=0.01, warmup=50, average=0.99, seed=1)
CELLS = {2: 0.85, 4: 0.15}
"""Side of the square of latent cells in a word, and how often: 16 words for plus adapters, 4 for base adapters."""
TRAINED = "attentions"  # the convolutions, which draw, stay as they are
LATE = 500  # half of a batch is drawn from the noisier half of the timesteps, where prompts decide
WORDS_SEED = 20260402


@dataclass(frozen=True)
class Lesson:
    """What a caption says, how often, and what is shown beside it.

    Attributes:
        caption: key of `captions_of`, or HALVES, whose picture is two unrelated halves with one of them shown.
        shown: by image prompt; else by caption alone.
        other_style: the prompt shows the emoji in its other style, and the caption names the style to be drawn.
    """

    caption: str
    share: float
    shown: bool = True
    other_style: bool = False


LESSONS = (
    Lesson("empty", 0.30),
    Lesson("style", 0.18, other_style=True),
    Lesson("style_category", 0.12),
    Lesson("category", 0.06),
    Lesson(HALVES, 0.12),
    Lesson(HALVES, 0.03, shown=False),
    Lesson("full", 0.08, shown=False),
    Lesson("style_category", 0.03, shown=False),
    Lesson("category", 0.02, shown=False),
    Lesson("style", 0.02, shown=False),
    Lesson("empty", 0.04, shown=False),
)


class WordsOf:
    """Latents (B, 4, 8, 8) to words (B, W, 768): a fixed random direction for each number, one for each place."""

    def __init__(self, side: int) -> None:
        self.side, self.places = side, UNET["sample_size"] // side
        random = torch.Generator().manual_seed(WORDS_SEED + side)
        numbers, width = 4 * side**2, UNET["cross_attention_dim"]
        directions = torch.linalg.qr(torch.randn(width, numbers, generator=random))[0]
        self.directions = directions.T * (width / numbers / 2) ** 0.5
        self.place = torch.randn(self.places**2, width, generator=random) / 2**0.5

    def __call__(self, latents: Tensor) -> Tensor:
        cells = latents.unflatten(2, (self.places, self.side)).unflatten(4, (self.places, self.side))
        return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2) @ self.directions + self.place


def train_image_prompts(
    model: UNet2DConditionModel, pictures: list[Picture], latents: Tensor, text: Mapping[str, Tensor], folder: Path
) -> UNet2DConditionModel:
    """Train a base model on.

    Args:
        latents: (N, 4, 8, 8), of the pictures.
        text: caption to (77, 768).
    """
    processors = model.attn_processors
    install(model)
    _, attentions = discover_sites(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(TRAINED in name)
    train("base model, image prompts", model, _loss(pictures, latents, text, attentions), RECIPE, folder)
    model.set_attn_processor(processors)
    return model


def _loss(pictures: list[Picture], latents: Tensor, text: Mapping[str, Tensor], attentions: Sequence[Any]) -> LossAt:
    """`attentions` are the model's cross-attention layers, whose `to_k` and `to_v` take the words as they take text."""
    schedule = DDPMScheduler(**SCHEDULE)
    captions = [captions_of(picture) for picture in pictures]
    taught = torch.tensor([number for number, picture in enumerate(pictures) if not picture.is_held_out])
    others = _in_other_style(pictures)
    lessons, sides = torch.tensor([lesson.share for lesson in LESSONS]), torch.tensor(list(CELLS.values()))
    words_of = [WordsOf(side) for side in CELLS]
    columns = torch.arange(UNET["sample_size"]).repeat(UNET["sample_size"])  # of each latent cell

    def loss_at(model: nn.Module, generator: torch.Generator) -> Tensor:
        drawn = [LESSONS[number] for number in torch.multinomial(lessons, BATCH, True, generator=generator)]
        shown = torch.tensor([lesson.shown for lesson in drawn])
        halved = torch.tensor([lesson.caption == HALVES for lesson in drawn])
        any_one, beside = torch.randint(len(pictures), (2, BATCH), generator=generator)
        target = torch.where(shown, taught[torch.randint(len(taught), (BATCH,), generator=generator)], any_one)
        reference = torch.where(torch.tensor([lesson.other_style for lesson in drawn]), others[target], target)
        right = torch.rand(BATCH, generator=generator) < 0.5
        own_half = (columns >= UNET["sample_size"] // 2) == right[:, None]
        keeps = (own_half | ~halved[:, None]).unflatten(1, (UNET["sample_size"], -1))[:, None]
        x = torch.where(keeps, latents[target], latents[beside])
        words = words_of[int(torch.multinomial(sides, 1, generator=generator))](latents[reference])
        mask = (keeps.flatten(1) & shown[:, None]).float()[..., None]
        said = [
            HALVES if lesson.caption == HALVES else captions[number][lesson.caption]
            for lesson, number in zip(drawn, target.tolist(), strict=True)
        ]
        context = torch.stack([text[caption] for caption in said]).float()
        t = torch.randint(schedule.config.num_train_timesteps, (BATCH,), generator=generator)
        t[::2] = torch.randint(LATE, schedule.config.num_train_timesteps, t[::2].shape, generator=generator)
        prompt = {"image_kv": [(attn.to_k(words), attn.to_v(words)) for attn in attentions], "image_mask": mask}
        return weighted_error(model, schedule, x, t, context, generator, cross_attention_kwargs=prompt)

    return loss_at


def _in_other_style(pictures: Sequence[Picture]) -> Tensor:
    """(N,): number of the same emoji's picture in the other style, or its own where there is none."""
    numbers = {(picture.code, picture.style): number for number, picture in enumerate(pictures)}
    return torch.tensor(
        [numbers.get((picture.code, OTHER_STYLE[picture.style]), number) for number, picture in enumerate(pictures)]
    )
