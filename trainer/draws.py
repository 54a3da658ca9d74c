"""Everything random about one sample, from the run's seed and the sample's number alone.

So a resumed run, a run on other hardware and a run split over other processes draw the same, and nothing about
generators has to be stored for it.
"""

# C latent channels, h w latent size

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import ObjectiveConfig


@dataclass(frozen=True, eq=False)
class Draws:
    """Random parts of one sample.

    Attributes:
        latent_noise: (C, h, w), standard normal, for sampling from the autoencoder's distribution.
        noise: (C, h, w), standard normal plus the noise offset.
        timestep: of the diffusion, within the objective's range.
        drop_text, drop_image: which prompts this sample loses.
    """

    latent_noise: Tensor
    noise: Tensor
    timestep: int
    drop_text: bool
    drop_image: bool


def sample_generator(seed: int, position: int, purpose: str) -> torch.Generator:
    """A generator of its own for each purpose of each sample of a run."""
    digest = hashlib.blake2b(f"{seed}/{position}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw(seed: int, position: int, shape: tuple[int, int, int], objective: ObjectiveConfig) -> Draws:
    """Draw for one sample whose latent has this shape (C, h, w).

    One draw decides the dropping, so that text, image and both exclude each other (arXiv 2308.06721, section 4.1.2).
    """
    generator = sample_generator(seed, position, "objective")
    drop = torch.rand((), generator=generator).item()
    timestep = torch.randint(objective.timestep_min, objective.timestep_max + 1, (), generator=generator).item()
    latent_noise = torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    if objective.noise_offset:
        noise = noise + objective.noise_offset * torch.randn((shape[0], 1, 1), generator=generator)
    text_only = drop < objective.drop_text
    image_only = not text_only and drop < objective.drop_text + objective.drop_image
    both = not (text_only or image_only) and drop < objective.drop_text + objective.drop_image + objective.drop_both
    return Draws(latent_noise, noise, int(timestep), text_only or both, image_only or both)
