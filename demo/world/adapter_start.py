"""What the demo's plus adapter starts from: a resampler that turns an encoder's features into the words that the base
model was taught to follow (`image_prompts`), and the text's own `to_k` and `to_v`.

Without it a resampler spends most of a short training on finding out where in the features a place is. `ipadapter
train` takes the file as `adapter.pretrained`. Held-out emoji are not seen.
"""

# B pictures, S = 1 + P * P feature positions of P x P patches, W = places * places words of places x places squares

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ipadapter_core.adapter import save_adapter
from trainer.config_file import read_config
from trainer.models.image_encoder import ImageEncoder, load_image_encoder
from trainer.models.loading import load_base
from trainer.models.network import new_adapter

from .glances import Outputs, glance_error
from .image_prompts import CELLS, WordsOf
from .pictures import Picture
from .training import Recipe, train

RECIPE = Recipe(steps=1500, learning_rate=2e-3, weight_decay=0.01, warmup=100, average=0.99)
ROUNDS = 3  # each from the learning rate's top: it learns fastest while that falls
BATCH = 64
GLANCE_WEIGHT = 0.3
MIXED_SHARE, OTHERS_SHARE = 0.75, 0.5
"""Of pictures, and of the squares in them that come from another picture: a resampler that has to read each square where
it is does not learn pictures by heart."""


def start_adapter(
    recipe: Path, overrides: Sequence[str], pictures: list[Picture], pixels: Tensor, latents: Tensor, path: Path
) -> None:
    """Write the file; done at once where it is there.

    Args:
        recipe: of `ipadapter train`; names base model, encoder and the adapter's sizes.
        pixels: (N, 3, 64, 64), uint8, of the pictures.
        latents: (N, 4, 8, 8), of the same.
    """
    if path.exists():
        return
    config = read_config(recipe, overrides)
    device = torch.device("cpu")
    encoder = load_image_encoder(config.encoder, config.adapter.kind, device)
    unet = load_base(config.base, device, only=frozenset({"unet"})).unet
    adapter = new_adapter(config.adapter.model_copy(update={"pretrained": None}), unet, encoder).adapter
    taught = torch.tensor([number for number, picture in enumerate(pictures) if not picture.is_held_out])
    features = _features(encoder, pixels[taught])
    (words_of,) = (words for words in map(WordsOf, CELLS) if words.places**2 == adapter.spec.num_tokens)
    words = words_of(latents[taught])

    reads = [attention for attention, _ in adapter.image_proj.layers]
    queries, key_values = Outputs([read.to_q for read in reads]), Outputs([read.to_kv for read in reads])
    patches = [_patch_of(words_of, layer, math.isqrt(features.shape[1] - 1)) for layer in range(len(reads))]

    def loss_at(projection: nn.Module, generator: torch.Generator) -> Tensor:
        one, other = torch.randint(len(taught), (2, BATCH), generator=generator)
        square = torch.rand(BATCH, words_of.places, words_of.places, generator=generator) < OTHERS_SHARE
        square &= torch.rand(BATCH, 1, 1, generator=generator) < MIXED_SHARE
        seen = torch.where(_of_positions(square, features.shape[1])[..., None], features[other], features[one])
        wanted = torch.where(square.flatten(1)[..., None], words[other], words[one])
        error = functional.mse_loss(projection(seen), wanted)
        glances = sum(
            glance_error(query, key_value.chunk(2, dim=-1)[0], patch, read.num_heads, read.num_heads).mean()
            for query, key_value, patch, read in zip(queries(), key_values(), patches, reads, strict=True)
        )
        return error + GLANCE_WEIGHT * glances / len(reads)

    for number in range(ROUNDS):
        round_recipe = replace(RECIPE, seed=number)
        train(
            f"{recipe.stem}, start {number}",
            adapter.image_proj,
            loss_at,
            round_recipe,
            path.with_suffix("") / str(number),
        )
    queries.close()
    key_values.close()
    save_adapter(adapter, path)


def _patch_of(words_of: WordsOf, layer: int, side: int) -> Tensor:
    """(W,): the feature position that a layer reads for each word: one patch of the word's square, each in its turn."""
    word = torch.arange(words_of.places**2)
    down, across = divmod(layer % words_of.side**2, words_of.side)
    row, column = word // words_of.places * words_of.side + down, word % words_of.places * words_of.side + across
    return 1 + row * side + column


def _of_positions(square: Tensor, positions: int) -> Tensor:
    """Squares (B, places, places) to feature positions (B, S); the class token goes with no square."""
    patches = functional.interpolate(square[:, None].float(), size=math.isqrt(positions - 1)).flatten(1).bool()
    return functional.pad(patches, (1, 0))


def _features(encoder: ImageEncoder, pixels: Tensor) -> Tensor:
    """Of all pictures."""
    images = (some.permute(0, 2, 3, 1).float() / 255 for some in pixels.split(128))
    return torch.cat([encoder.features(encoder.format.pixels(some)) for some in images])
