"""The image encoder: a small CLIP vision transformer, taught that two styles and a name are the same thing.

Its losses: InfoNCE between the two styles of an emoji and between picture and name (CLIP, arXiv 2103.00020), and from
the penultimate layer, linearly, what each patch shows and where it lies, which keeps there what a plus adapter needs.
Only emoji outside the held-out set are seen. The name tower and the linear layers are thrown away.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2
from transformers import CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

from ipadapter_core.encoder.folder import CLIP_STATISTICS

from .pictures import STYLES, Picture
from .training import Recipe, train

RECIPE = Recipe(steps=400, learning_rate=1e-3, weight_decay=0.05, warmup=30, average=0.98)
BATCH = 96  # emoji; each in two styles
CONFIG = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "projection_dim": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "image_size": 64,
    "patch_size": 8,
}
PATCHES = CONFIG["image_size"] // CONFIG["patch_size"]  # in a row
PENULTIMATE = -2
REDRAW_WEIGHT, PLACE_WEIGHT = 4.0, 20.0


class Lesson(nn.Module):
    """The encoder with what only training needs."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**CONFIG))
        self.names = nn.EmbeddingBag(vocabulary, CONFIG["projection_dim"], mode="mean", padding_idx=0)
        self.redraw = nn.Linear(CONFIG["hidden_size"], 3 * CONFIG["patch_size"] ** 2)
        self.place = nn.Linear(CONFIG["hidden_size"], 2 * PATCHES)
        self.log_scale = nn.Parameter(torch.tensor(2.7))

    def forward(self, pixels: Tensor, names: Tensor) -> Tensor:
        """Loss of B emoji.

        Args:
            pixels: (2, B, 3, 64, 64), flat and 3d, normalised.
            names: (B, T) word numbers, 0 where there is none.
        """
        both = pixels.flatten(0, 1)
        output = self.vision(both, output_hidden_states=True)
        flat, in_3d = functional.normalize(output.image_embeds, dim=-1).unflatten(0, (2, -1))
        words = functional.normalize(self.names(names), dim=-1)
        scale = self.log_scale.clamp(max=4.6).exp()
        pairs = ((flat, in_3d), (flat, words), (in_3d, words))
        contrast = sum(_info_nce(scale * a @ b.T) for a, b in pairs) / len(pairs)
        patches = functional.unfold(both, CONFIG["patch_size"], stride=CONFIG["patch_size"]).transpose(1, 2)
        hidden = output.hidden_states[PENULTIMATE][:, 1:]
        places = self.place(hidden)
        patch_error = REDRAW_WEIGHT * functional.mse_loss(self.redraw(hidden), patches)
        return contrast + patch_error + PLACE_WEIGHT * functional.mse_loss(places, place_codes().expand_as(places))


def place_codes() -> Tensor:
    """(P * P, 2 * P) for P x P patches: 1 for its row and 1 for its column."""
    row = torch.eye(PATCHES)
    return torch.cat((row.repeat_interleave(PATCHES, dim=0), row.repeat(PATCHES, 1)), dim=1)


def train_encoder(
    pictures: list[Picture], pixels: Tensor, tokenizer: CLIPTokenizer, folder: Path
) -> CLIPVisionModelWithProjection:
    """Train on the emoji that are not held out and exist in both styles.

    Args:
        pixels: (N, 3, 64, 64), uint8, of the pictures.
    """
    numbers = {(picture.code, picture.style): number for number, picture in enumerate(pictures)}
    taught = [
        (picture, [numbers[picture.code, style] for style in STYLES])
        for picture in pictures
        if not picture.is_held_out and picture.style == STYLES[0] and (picture.code, STYLES[1]) in numbers
    ]
    names = tokenizer([picture.name for picture, _ in taught], add_special_tokens=False).input_ids
    words = {token: 1 + number for number, token in enumerate(sorted({token for name in names for token in name}))}
    name_numbers = nn.utils.rnn.pad_sequence(
        [torch.tensor([words[token] for token in name]) for name in names], batch_first=True
    )
    change = v2.Compose(
        [
            v2.RandomAffine(degrees=8, translate=(0.08, 0.08), scale=(0.85, 1.1), fill=255),
            v2.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(*CLIP_STATISTICS),
        ]
    )
    torch.manual_seed(0)
    model = Lesson(1 + len(words))

    def loss_at(model: nn.Module, generator: torch.Generator) -> Tensor:
        chosen = torch.randperm(len(taught), generator=generator)[:BATCH]
        with torch.random.fork_rng():  # torchvision draws from the global generator
            torch.manual_seed(generator.initial_seed())
            sides = [torch.stack([change(pixels[taught[i][1][side]]) for i in chosen]) for side in range(2)]
        return model(torch.stack(sides), name_numbers[chosen])

    return train("image encoder", model, loss_at, RECIPE, folder).vision.eval().requires_grad_(False)


def _info_nce(scores: Tensor) -> Tensor:
    """Mean of both directions; row i and column i belong together."""
    truth = torch.arange(len(scores))
    return (functional.cross_entropy(scores, truth) + functional.cross_entropy(scores.T, truth)) / 2
