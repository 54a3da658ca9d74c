"""Everything random about one sample, from the run's seed and the sample's number alone.

So a resumed run, a run on other hardware and a run split over other processes draw the same, and nothing about
generators has to be stored for it.
"""

# C latent channels, h w latent size

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .backbones.times import TimeShift
from .config import ObjectiveConfig

STEPS = 1000
"""Of a schedule; a config's timesteps are 0 to one less."""
CACHED_NOISES = 20
"""Pictures of noise that stand for dropped references where features are cached; as many as ai-toolkit's cache has."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Random parts of one sample.

    Attributes:
        latent_noise: (C, h, w), standard normal, for sampling from the autoencoder's distribution.
        noise: (C, h, w), standard normal plus the noise offset, or over several resolutions.
        time: of the diffusion, 0 (clean) to 1 (noise), within the objective's range.
        drop_text, drop_image: which prompts this sample loses.
        perturbation: (C, h, w), what the model's input has beyond the noise; None if nothing.
    """

    latent_noise: Tensor
    noise: Tensor
    time: float
    drop_text: bool
    drop_image: bool
    perturbation: Tensor | None


def sample_generator(seed: int, position: int, purpose: str) -> torch.Generator:
    """A generator of its own for each purpose of each sample of a run."""
    digest = hashlib.blake2b(f"{seed}/{position}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw(
    seed: int,
    position: int,
    shape: tuple[int, int, int],
    objective: ObjectiveConfig,
    shift: TimeShift | None = None,
) -> Draws:
    """Draw for one sample whose latent has this shape (C, h, w).

    Args:
        shift: of a flow model, whose times are any number; None: one of a schedule's 1,000 steps.


    One draw decides the dropping, so that text, image and both exclude each other (arXiv 2308.06721, section 4.1.2).
    What is off by default draws from generators of its own: switched on, it leaves all other draws as they are.
    """
    generator = sample_generator(seed, position, "objective")
    drop = torch.rand((), generator=generator).item()
    timestep = torch.randint(objective.timestep_min, objective.timestep_max + 1, (), generator=generator).item()
    latent_noise = torch.randn(shape, generator=generator)
    noise = torch.randn(shape, generator=generator)
    if objective.noise_offset:
        noise = noise + objective.noise_offset * torch.randn((shape[0], 1, 1), generator=generator)
    if objective.pyramid_noise:
        noise = _with_coarser(noise, objective.pyramid_noise, sample_generator(seed, position, "pyramid"))
    time = timestep / STEPS
    if shift is not None or objective.timestep_sampling != "uniform":
        place = _place(objective, sample_generator(seed, position, "timestep"))
        time = _step(place, objective) / STEPS if shift is None else _shifted(place, objective, shift, shape)
    perturbation = None
    if objective.input_perturbation:
        generator = sample_generator(seed, position, "perturbation")
        perturbation = objective.input_perturbation * torch.randn(shape, generator=generator)
    text_only = drop < objective.drop_text
    image_only = not text_only and drop < objective.drop_text + objective.drop_image
    both = not (text_only or image_only) and drop < objective.drop_text + objective.drop_image + objective.drop_both
    return Draws(latent_noise, noise, time, text_only or both, image_only or both, perturbation)


def _place(objective: ObjectiveConfig, generator: torch.Generator) -> float:
    """Where in the objective's range, 0..1."""
    if objective.timestep_sampling == "sigmoid":
        normal = torch.randn((), generator=generator, dtype=torch.float64)
        return (objective.timestep_logit_mean + objective.timestep_logit_std * normal).sigmoid().item()
    even = torch.rand((), generator=generator, dtype=torch.float64).item()
    return {"uniform": even, "earlier": even**3, "later": 1 - even**3}[objective.timestep_sampling]


def _shifted(place: float, objective: ObjectiveConfig, shift: TimeShift, shape: tuple[int, int, int]) -> float:
    first, last = objective.timestep_min / STEPS, (objective.timestep_max + 1) / STEPS
    return first + (last - first) * shift.of(place, shape[1], shape[2])


def _step(place: float, objective: ObjectiveConfig) -> int:
    count = objective.timestep_max - objective.timestep_min + 1
    return objective.timestep_min + min(math.floor(place * count), count - 1)


def _with_coarser(noise: Tensor, discount: float, generator: torch.Generator) -> Tensor:
    """Multi-resolution noise (C, h, w): level n is smaller by a factor of 2 to 4 to the power of n, and enlarged.

    As in the report, level 0 is another noise of full size, the last level is the first with a side of 1, and the sum
    is divided by its standard deviation; here that of the sample, since a sample knows nothing of its batch.
    https://wandb.ai/johnowhitaker/multires_noise/reports/Multi-Resolution-Noise-for-Diffusion-Model-Training--VmlldzozNjYyOTU2
    """
    size = height, width = (noise.shape[-2], noise.shape[-1])
    level = 0
    while True:
        factor = (2 + 2 * torch.rand((), generator=generator).item()) ** level
        height, width = max(1, int(height / factor)), max(1, int(width / factor))
        coarse = torch.randn((1, noise.shape[0], height, width), generator=generator)
        noise = noise + discount**level * functional.interpolate(coarse, size, mode="bilinear")[0]
        if min(height, width) == 1:
            return noise / noise.std()
        level += 1
