"""The base model: a UNet of SD1.5's layout with few blocks, trained on captions and on perfect image prompts.

It may see the held-out emoji, by caption: a base model knows the world, and the adapters have to carry what they have
not seen. No image prompt shows one.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.training_utils import compute_snr
from torch import Tensor, nn

from demo import tiny_base
from ipadapter_trainer.backbones.unet_attention import install
from ipadapter_trainer.backbones.unet_sites import discover_sites

from .apart import Pairs, difference, draw_pairs
from .glances import Outputs, glance_error
from .image_prompts import CHANNELS, SIZE, WordsOf, own_words
from .lessons import HALVES, Batch, Lessons
from .pictures import Picture
from .training import Recipe, train

RECIPE = Recipe(steps=1000, learning_rate=7e-4, weight_decay=0.01, average=0.99)
APART = Recipe(steps=150, learning_rate=3e-4, weight_decay=0.01, average=0.98, warmup=10, seed=1)
BATCH, PAIRS = 32, 8
UNET = {"sample_size": SIZE, **tiny_base.UNET}
TIMESTEPS = 1000
SCHEDULE = {  # SD1.5's
    "num_train_timesteps": TIMESTEPS,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "clip_sample": False,
}
LARGEST_WEIGHT = 60.0  # reached at timestep 925 or so
GLANCE_WEIGHT, READ_WEIGHT = 0.2, 0.4
APART_WEIGHT = 10.0
SIDE = 2  # of a word in pairs, in latent cells: a plus adapter's
GUIDED_HEADS = 6  # of 8, in every cross-attention


def train_base(
    pictures: list[Picture], latents: Tensor, text: Mapping[str, Tensor], folder: Path
) -> UNet2DConditionModel:
    """Train from nothing.

    Args:
        latents: (N, 4, 8, 8), of the pictures.
        text: caption to (77, 768): every caption of every picture.
    """
    torch.manual_seed(0)
    taught = Taught(UNet2DConditionModel(**UNET).to(memory_format=torch.channels_last))
    lessons = Lessons(pictures, latents, text)
    halves, words_of, told = text[HALVES].float(), WordsOf(SIDE), latents[lessons.taught]

    def loss_at(model: nn.Module, generator: torch.Generator) -> Tensor:
        return model(lessons.draw(BATCH, TIMESTEPS, generator), generator)

    def apart_at(model: nn.Module, generator: torch.Generator) -> Tensor:
        pairs = draw_pairs(told, PAIRS, TIMESTEPS, words_of, generator)
        return loss_at(model, generator) + APART_WEIGHT * taught.difference(pairs, halves)

    train("base model", taught, loss_at, RECIPE, folder)
    train("base model, halves apart", taught, apart_at, APART, folder / "apart")
    taught.close()
    return taught.unet.eval().requires_grad_(False)


class Taught(nn.Module):
    """The UNet with what only training needs: two hints on how to follow image prompts.

    Where to look: each cell's own word (`glance_error`). What to read there: from the output of each transformer block
    a linear layer has to tell what the word says about this cell, of the several cells in a word.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet, self.schedule = unet, DDPMScheduler(**SCHEDULE)
        self._plain = unet.attn_processors
        install(unet)
        _, self._attentions = discover_sites(unet)
        blocks = [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]
        self.read = nn.ModuleList(nn.Linear(unet.config.block_out_channels[0], CHANNELS) for _ in blocks)
        self._queries = Outputs([attention.to_q for attention in self._attentions])
        self._hidden = Outputs(blocks)

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Loss."""
        shown = batch.shown.flatten(1)
        noise = torch.randn(batch.x.shape, generator=generator)
        image_kv = self._image_kv(batch.words)
        predicted = self._predict(batch.x, noise, batch.t, batch.context, image_kv, shown)
        error = ((predicted - noise).square() * self._weights(batch.t)).mean()
        own = own_words(batch.words.shape[1])
        said = batch.reference.flatten(2).transpose(1, 2)
        hints = torch.zeros_like(shown, dtype=error.dtype)
        for query, (key, _), attention in zip(self._queries(), image_kv, self._attentions, strict=True):
            hints = hints + GLANCE_WEIGHT * glance_error(query, key, own, attention.heads, GUIDED_HEADS)
        for hidden, read in zip(self._hidden(), self.read, strict=True):
            hints = hints + READ_WEIGHT * (read(hidden) - said).square().mean(dim=2)
        return error + (hints * shown).sum() / shown.sum().clamp(min=1) / len(self.read)

    def difference(self, pairs: Pairs, halves: Tensor) -> Tensor:
        """Loss of pairs (`apart`), under the caption HALVES (77, 768)."""
        context = halves.expand(len(pairs.x), -1, -1)
        image_kv = self._image_kv(pairs.words)
        predicted = self._predict(pairs.x, pairs.noise, pairs.t, context, image_kv, pairs.shown.flatten(1))
        return difference(predicted, pairs, self._weights(pairs.t))

    def _image_kv(self, words: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of an image prompt, for each attention."""
        return [(attention.to_k(words), attention.to_v(words)) for attention in self._attentions]

    def _predict(
        self, x: Tensor, noise: Tensor, t: Tensor, context: Tensor, image_kv: list[tuple[Tensor, Tensor]], shown: Tensor
    ) -> Tensor:
        """The noise in x; `shown` (B, L) says where the image prompt holds."""
        noised = self.schedule.add_noise(x, noise, t).contiguous(memory_format=torch.channels_last)
        prompt = {"image_kv": image_kv, "image_mask": shown[..., None].float()}
        return self.unet(noised, t, context, cross_attention_kwargs=prompt).sample

    def _weights(self, t: Tensor) -> Tensor:
        """(B, 1, 1, 1), for errors of the predicted noise: what predicting v would give (arXiv 2202.00512).

        Plain weights hardly count the steps in much noise, where captions, and later references, decide what is drawn.
        """
        snr = compute_snr(self.schedule, t)[:, None, None, None]
        return (1 + 1 / snr).clamp(max=LARGEST_WEIGHT)

    def close(self) -> None:
        """Leave the UNet as diffusers makes it."""
        self.unet.set_attn_processor(self._plain)
        self._queries.close()
        self._hidden.close()
