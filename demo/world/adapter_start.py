"""What the demo's plus adapter starts from: a resampler that turns an encoder's features into the words that the base
model was taught to follow (`image_prompts`), and the text's own `to_k` and `to_v`.

Without it a resampler spends most of a short training on finding out where in the features a place is. `ipadapter
train` takes the file as `adapter.pretrained`. Held-out emoji are not seen.
"""

# B pictures, S = 1 + P * P feature positions of P x P patches, H heads, W = places * places words of places x places squares

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ipadapter_core.network.adapter import save_adapter
from ipadapter_core.network.resampler import Resampler
from ipadapter_trainer.config_file import read_config
from ipadapter_trainer.models.image_encoder import ImageEncoder, load_image_encoder
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.models.network import new_adapter

from .encoder import PATCHES, place_codes
from .glances import Outputs, glance_error
from .image_prompts import CELLS, WordsOf
from .pictures import Picture
from .training import Recipe, train

RECIPE = Recipe(steps=2500, learning_rate=2e-3, weight_decay=0.01, warmup=100, average=0.99)
BATCH = 48
GLANCE_WEIGHT = 0.3
AIM = 3.0  # square root of the scores that attention starts with where it should look
AIMED_BY = 256  # pictures
MIXTURES = 2
"""For each picture, so many whose four quarters come from four pictures: a resampler that has to read each place where it
is does not learn pictures by heart."""


def start_adapter(
    recipe: Path,
    overrides: Sequence[str],
    pictures: list[Picture],
    pixels: Tensor,
    latents_of: Callable[[Tensor], Tensor],
    path: Path,
) -> None:
    """Write the file; done at once where it is there.

    Args:
        recipe: of `ipadapter train`; names base model, encoder and the adapter's sizes.
        pixels: (N, 3, 64, 64), uint8, of the pictures.
        latents_of: such pixels to latents (N, 4, 8, 8).
    """
    if path.exists():
        return
    torch.manual_seed(0)
    config = read_config(recipe, overrides)
    device = torch.device("cpu")
    encoder = load_image_encoder(config.encoder, config.adapter.kind, device)
    base = load_base(config.base, device, only=frozenset({"model"}))
    adapter = new_adapter(config.adapter, base, encoder, is_fresh=True).adapter
    taught = pixels[[number for number, picture in enumerate(pictures) if not picture.is_held_out]]
    shown = torch.cat((taught, *(_mixture(taught, number) for number in range(MIXTURES))))
    features = _features(encoder, shown)
    (words_of,) = (words for words in map(WordsOf, CELLS) if words.places**2 == adapter.spec.num_tokens)
    words = words_of(latents_of(shown))

    reads = [attention for attention, _ in adapter.image_proj.layers]
    queries, key_values = Outputs([read.to_q for read in reads]), Outputs([read.to_kv for read in reads])
    patches = patches_of(words_of, adapter.image_proj.spec.depth, adapter.image_proj.spec.num_heads)
    aim(adapter.image_proj, features[:AIMED_BY], patches)

    def loss_at(projection: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(shown), (BATCH,), generator=generator)
        error = functional.mse_loss(projection(features[chosen]), words[chosen])
        glances = sum(
            glance_error(query, key_value.chunk(2, dim=-1)[0], patch, read.num_heads, read.num_heads).mean()
            for query, key_value, patch, read in zip(queries(), key_values(), patches, reads, strict=True)
        )
        return error + GLANCE_WEIGHT * glances / len(reads)

    train(f"{recipe.stem}, start", adapter.image_proj, loss_at, RECIPE, path.with_suffix(""))
    queries.close()
    key_values.close()
    save_adapter(adapter, path)


def _mixture(pixels: Tensor, seed: int) -> Tensor:
    """As many pictures (N, 3, 64, 64), each quarter from a picture of its own."""
    random = torch.Generator().manual_seed(seed)
    half = pixels.shape[-1] // 2
    mixed = pixels.clone()
    for top, left in itertools.product((0, half), repeat=2):
        others = torch.randperm(len(pixels), generator=random)
        mixed[..., top : top + half, left : left + half] = pixels[others, :, top : top + half, left : left + half]
    return mixed


@torch.no_grad()
def aim(resampler: Resampler, features: Tensor, patches: list[Tensor]) -> None:
    """Let each head look at its patch from the start, where it would look only after a thousand steps.

    Keys become, by least squares, the code of the patch, whatever it shows; queries that of the patch to read.

    Args:
        patches: for each layer (H, W): feature positions.
    """
    resampler.latents.normal_()  # outweigh what the layers add to them, so that all layers know which word is which
    seen = resampler.proj_in(features)
    head_dim = resampler.spec.head_dim
    of_patches = functional.pad(place_codes(), (0, head_dim - 2 * PATCHES, 1, 0))  # the class token has none
    codes = AIM * head_dim**0.25 * of_patches
    for (read, _), of_heads in zip(resampler.layers, patches, strict=True):
        latents = read.norm2(resampler.latents[0])
        inputs = torch.cat((read.norm1(seen).flatten(0, 1), latents * len(seen) ** 0.5))
        wanted = functional.pad(codes.repeat(len(seen), 1), (0, 0, 0, len(latents)))
        keys = torch.linalg.lstsq(inputs, wanted).solution.T
        queries = (torch.linalg.pinv(latents) @ codes[of_heads]).transpose(1, 2).flatten(0, 1)
        read.to_q.weight.copy_(queries)
        read.to_kv.weight[: len(queries)] = keys.repeat(len(of_heads), 1)


def patches_of(words_of: WordsOf, layers: int, heads: int) -> list[Tensor]:
    """For each layer (H, W): the feature position that a head reads for a word.

    In each layer some heads read one of the patches around the word's square each, since latents depend on those too;
    the others read one patch of the square.
    """
    square = list(itertools.product(range(words_of.side), repeat=2))
    around = [place for place in itertools.product(range(-1, words_of.side + 1), repeat=2) if place not in square]
    share = min(math.ceil(len(around) / layers), heads - 1)
    patches = []
    for layer in range(layers):
        others = around[layer * share : (layer + 1) * share]
        offsets = [square[layer % len(square)]] * (heads - len(others)) + others
        patches.append(torch.stack([_patch_at(words_of, offset) for offset in offsets]))
    return patches


def _patch_at(words_of: WordsOf, offset: tuple[int, int]) -> Tensor:
    """(W,): the feature position at an offset, in patches, from each word's square; the nearest inside the picture."""
    word = torch.arange(words_of.places**2)
    corners = (word // words_of.places, word % words_of.places)
    row, column = (
        (corner * words_of.side + away).clamp(0, PATCHES - 1) for corner, away in zip(corners, offset, strict=True)
    )
    return 1 + row * PATCHES + column


def _features(encoder: ImageEncoder, pixels: Tensor) -> Tensor:
    """Of all pictures."""
    images = (some.permute(0, 2, 3, 1).float() / 255 for some in pixels.split(128))
    return torch.cat([encoder.features(encoder.format.pixels(some)) for some in images])
