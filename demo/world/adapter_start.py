"""What the demo's adapters start from: an image projection that turns an encoder's features into the words that the base
model was taught to follow (`image_prompts`), and the text's own `to_k` and `to_v`.

Without it a projection spends most of a short training on finding out where in the features a place is. `ipadapter
train` takes the file as `adapter.pretrained`. Held-out emoji are not seen.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ipadapter_core.adapter import save_adapter
from trainer.config_file import read_config
from trainer.models.image_encoder import ImageEncoder, load_image_encoder
from trainer.models.loading import load_base
from trainer.models.network import new_adapter

from .image_prompts import CELLS, WordsOf
from .pictures import Picture
from .training import Recipe, train

RECIPE = Recipe(steps=1500, learning_rate=2e-3, weight_decay=0.01, warmup=100, average=0.99)
BATCH = 64


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

    def loss_at(projection: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = torch.randint(len(taught), (BATCH,), generator=generator)
        return functional.mse_loss(projection(features[chosen]), words[chosen])

    train(f"{recipe.stem}, start", adapter.image_proj, loss_at, RECIPE, path.with_suffix(""))
    save_adapter(adapter, path)


def _features(encoder: ImageEncoder, pixels: Tensor) -> Tensor:
    """Of all pictures."""
    images = (some.permute(0, 2, 3, 1).float() / 255 for some in pixels.split(128))
    return torch.cat([encoder.features(encoder.format.pixels(some)) for some in images])
