"""What the trainer trains for Anima, in ComfyUI."""

from pathlib import Path

import torch
from torch import Tensor

from support import tiny_anima
from support.tiny_anima_base import of_comfy


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_diffusers_model_is_comfyuis(base_directory: Path) -> None:
    """Of the same weights: the blocks, positions and time, and the text conditioner."""
    network = tiny_anima.comfy_anima().model.diffusion_model
    transformer, conditioner = of_comfy(network)
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, tiny_anima.LATENT_CHANNELS, 1, 12, 8, generator=generator)
    text, states = (
        torch.randn(2, 7, tiny_anima.TEXT_DIM, generator=generator),
        torch.randn(2, 5, 8, generator=generator),
    )
    times, words = torch.tensor([0.9, 0.3]), torch.randint(0, 32000, (2, 9), generator=generator)
    with torch.inference_mode():
        expected = network(noisy, times, text)
        given = transformer(noisy, times, text, padding_mask=torch.zeros(1, 1, 96, 64)).sample
        assert difference(given, expected) < 1e-4
        assert difference(conditioner(states, words), network.preprocess_text_embeds(states, words)) < 1e-4
