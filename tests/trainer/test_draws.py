"""What is random about a sample depends on seed and number alone, at the rates the paper gives."""

import math

import numpy as np
import pytest
import torch

from ipadapter_trainer.config import ObjectiveConfig
from ipadapter_trainer.draws import Draws, draw, sample_generator

SHAPE = (1, 2, 2)


def timestep_of(draws: Draws) -> int:
    """Of a schedule's 1,000."""
    return round(draws.time * 1000)


def test_same_number_same_draw() -> None:
    first, again = (draw(7, 123, (4, 8, 8), ObjectiveConfig()) for _ in range(2))
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.latent_noise, again.latent_noise)
    assert (first.time, first.drop_text, first.drop_image) == (again.time, again.drop_text, again.drop_image)


@pytest.mark.parametrize("other", [(8, 123, "crop"), (7, 124, "crop"), (7, 123, "flip")])
def test_other_seed_number_or_purpose_other_draw(other: tuple[int, int, str]) -> None:
    values = [torch.rand(4, generator=sample_generator(*key)) for key in ((7, 123, "crop"), other)]
    assert not torch.equal(*values)


def test_dropout_rates_and_their_exclusion() -> None:
    objective = ObjectiveConfig(drop_text=0.05, drop_image=0.1, drop_both=0.15)
    draws = [draw(0, position, SHAPE, objective) for position in range(10_000)]
    kinds = [(one.drop_text, one.drop_image) for one in draws]
    for kind, rate in {(True, False): 0.05, (False, True): 0.1, (True, True): 0.15}.items():
        assert kinds.count(kind) / len(kinds) == pytest.approx(rate, abs=0.01)


def test_timesteps_fill_their_range() -> None:
    timesteps = [timestep_of(draw(0, n, SHAPE, ObjectiveConfig(timestep_min=10, timestep_max=14))) for n in range(200)]
    assert set(timesteps) == {10, 11, 12, 13, 14}


def test_noise_offset_is_one_constant_per_channel() -> None:
    plain, offset = (draw(0, 5, (4, 8, 8), ObjectiveConfig(noise_offset=x)).noise for x in (0.0, 0.5))
    difference = offset - plain
    assert torch.allclose(difference, difference[:, :1, :1].expand_as(difference), atol=1e-6)
    assert difference.std() > 0


def test_noise_is_standard_normal() -> None:
    noise = torch.stack([draw(1, position, (4, 8, 8), ObjectiveConfig()).noise for position in range(200)])
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


NEW = {
    "timestep_sampling": "later",
    "pyramid_noise": 0.9,
    "input_perturbation": 0.1,
}


def test_defaults_draw_from_one_generator_in_this_order() -> None:
    """Whose order is part of every checkpoint: a run that goes on must draw what it would have drawn."""
    generator = sample_generator(7, 123, "objective")
    drop = torch.rand((), generator=generator).item()
    timestep = torch.randint(0, 1000, (), generator=generator).item()
    latent_noise, noise = (torch.randn((4, 8, 8), generator=generator) for _ in range(2))
    given = draw(7, 123, (4, 8, 8), ObjectiveConfig(drop_text=drop + 1e-6, drop_image=0, drop_both=0))
    assert (timestep_of(given), given.drop_text, given.perturbation) == (timestep, True, None)
    assert torch.equal(given.latent_noise, latent_noise)
    assert torch.equal(given.noise, noise)
    assert not draw(7, 123, (4, 8, 8), ObjectiveConfig(drop_text=drop, drop_image=0, drop_both=0)).drop_text


@pytest.mark.parametrize("name", NEW)
def test_a_feature_changes_its_own_draw_alone(name: str) -> None:
    plain, given = (draw(7, 123, (4, 8, 8), ObjectiveConfig(**one)) for one in ({}, {name: NEW[name]}))
    same = {
        "timestep_sampling": given.time == plain.time,
        "pyramid_noise": torch.equal(given.noise, plain.noise),
        "input_perturbation": given.perturbation is None,
    }
    assert [key for key, value in same.items() if not value] == [name]
    assert torch.equal(given.latent_noise, plain.latent_noise)
    assert (given.drop_text, given.drop_image) == (plain.drop_text, plain.drop_image)


def logit_normal_below(x: float, mean: float, std: float) -> float:
    return 0.5 * (1 + math.erf((math.log(x / (1 - x)) - mean) / (std * math.sqrt(2))))


# share of timesteps below the part x of the range
BELOW = {
    "sigmoid": ({}, lambda x: logit_normal_below(x, 0, 1)),
    "sigmoid, shifted": (
        {"timestep_logit_mean": 0.5, "timestep_logit_std": 0.7},
        lambda x: logit_normal_below(x, 0.5, 0.7),
    ),
    "earlier": ({}, lambda x: x ** (1 / 3)),
    "later": ({}, lambda x: 1 - (1 - x) ** (1 / 3)),
}


@pytest.mark.parametrize("name", BELOW)
def test_timesteps_have_the_distribution_that_is_named(name: str) -> None:
    settings, below = BELOW[name]
    objective = ObjectiveConfig(
        timestep_min=200, timestep_max=799, timestep_sampling=name.partition(",")[0], **settings
    )
    timesteps = np.array([timestep_of(draw(0, position, SHAPE, objective)) for position in range(4000)])
    assert timesteps.min() >= 200
    assert timesteps.max() <= 799
    for x in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert (timesteps < 200 + 600 * x).mean() == pytest.approx(below(x), abs=0.025)


@pytest.mark.parametrize("sampling", ["sigmoid", "earlier", "later"])
def test_every_timestep_of_a_range_is_met_and_none_beyond_it(sampling: str) -> None:
    objective = ObjectiveConfig(timestep_min=10, timestep_max=14, timestep_sampling=sampling)
    assert {timestep_of(draw(0, position, SHAPE, objective)) for position in range(1000)} == {10, 11, 12, 13, 14}


def enlarged(coarse: np.ndarray, height: int, width: int) -> np.ndarray:
    """Linear between the centres of the coarse cells, along one axis and then the other."""

    def along(values: np.ndarray, size: int) -> np.ndarray:
        centres = (np.arange(len(values)) + 0.5) * size / len(values) - 0.5
        return np.interp(np.arange(size), centres, values)

    return np.apply_along_axis(along, 1, np.apply_along_axis(along, 0, coarse, height), width)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (8, 8)])
def test_pyramid_noise_is_the_sum_of_its_levels(height: int, width: int) -> None:
    plain = draw(3, 5, (4, height, width), ObjectiveConfig()).noise.numpy().astype(float)
    given = draw(3, 5, (4, height, width), ObjectiveConfig(pyramid_noise=0.8)).noise.numpy()
    generator, high, wide, level, sides = sample_generator(3, 5, "pyramid"), height, width, 0, []
    while True:
        shrink = (2 + 2 * float(torch.rand((), generator=generator))) ** level
        high, wide = max(1, int(high / shrink)), max(1, int(wide / shrink))
        for channel, coarse in enumerate(torch.randn((4, high, wide), generator=generator).numpy()):
            plain[channel] += 0.8**level * enlarged(coarse, height, width)
        sides.append((high, wide))
        level += 1
        if 1 in (high, wide):
            break
    assert len(sides) >= 3
    np.testing.assert_allclose(given, plain / plain.std(ddof=1), atol=1e-5)


def test_pyramid_noise_is_of_unit_size_and_coarse() -> None:
    def neighbours(noise: torch.Tensor) -> float:
        return float((noise[:, :, :, 1:] * noise[:, :, :, :-1]).mean())

    white, coarse = (
        torch.stack([draw(1, position, (4, 32, 32), ObjectiveConfig(pyramid_noise=x)).noise for position in range(50)])
        for x in (0.0, 0.9)
    )
    assert abs(neighbours(white)) < 0.02
    assert neighbours(coarse) > 0.3
    assert abs(coarse.std() - 1) < 0.1


def test_perturbation_is_noise_of_its_own_with_its_strength() -> None:
    draws = [draw(1, position, (4, 8, 8), ObjectiveConfig(input_perturbation=0.2)) for position in range(200)]
    perturbation = torch.stack([one.perturbation for one in draws if one.perturbation is not None])
    noise = torch.stack([one.noise for one in draws])
    assert perturbation.std() == pytest.approx(0.2, abs=0.005)
    assert abs((perturbation * noise).mean()) < 0.005


def test_timesteps_of_a_short_range_have_equal_parts_of_it() -> None:
    objective = ObjectiveConfig(timestep_min=10, timestep_max=11, timestep_sampling="earlier")
    timesteps = [timestep_of(draw(0, position, SHAPE, objective)) for position in range(2000)]
    assert timesteps.count(10) / 2000 == pytest.approx(0.5 ** (1 / 3), abs=0.03)
