"""Perfect image prompts, by which the base model learns to follow image prompts at all, before any adapter exists.

Large models are taught with billions of described pictures, and their cross-attention carries where what is. A tiny one
learns that from words that are the picture's own latents, a few cells in each, seen through a second attention as an
adapter's are (arXiv 2308.06721, equation 4), but with the text's own `to_k` and `to_v`, so that nothing is added to the
model. An adapter has to learn the rest: to make such words from an encoder's features.
"""

# B samples, L = 8 * 8 latent cells, W = places * places words of side x side cells

import torch
from torch import Tensor
from torch.nn import functional

from demo.tiny_base import CROSS_ATTENTION_DIM

CELLS = {2: 0.85, 4: 0.15}
"""Side of the square of latent cells in a word, and how often: 16 words for plus adapters, 4 for base adapters."""
CHANNELS, SIZE = 4, 8  # of latents
WIDTH = CROSS_ATTENTION_DIM  # of a word
SPARE = 64  # numbers of a word that stay 0, for adapters that give all words one length: the difference goes there
WORDS_SEED = 20260402


class WordsOf:
    """Latents (B, 4, 8, 8) to words (B, W, 768): a fixed random direction for each number, one for each place."""

    def __init__(self, side: int) -> None:
        self.side, self.places = side, SIZE // side
        random = torch.Generator().manual_seed(WORDS_SEED + side)
        numbers = CHANNELS * side**2
        directions = torch.linalg.qr(torch.randn(WIDTH - SPARE, numbers, generator=random))[0]
        self.directions = functional.pad(directions.T * (WIDTH / numbers / 2) ** 0.5, (0, SPARE))
        place = torch.randn(self.places**2, WIDTH - SPARE, generator=random) / 2**0.5
        self.place = functional.pad(place, (0, SPARE))

    def __call__(self, latents: Tensor) -> Tensor:
        cells = latents.unflatten(2, (self.places, self.side)).unflatten(4, (self.places, self.side))
        return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2) @ self.directions + self.place


def own_words(count: int) -> Tensor:
    """(L,): for each latent cell the number of its word, of `count` words."""
    places = round(count**0.5)
    row = torch.arange(SIZE) // (SIZE // places)
    return (row[:, None] * places + row).flatten()
