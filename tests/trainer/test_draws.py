"""What is random about a sample depends on seed and number alone, at the rates the paper gives."""

import pytest
import torch

from trainer.config import ObjectiveConfig
from trainer.draws import draw, sample_generator

SHAPE = (1, 2, 2)


def test_same_number_same_draw() -> None:
    first, again = (draw(7, 123, (4, 8, 8), ObjectiveConfig()) for _ in range(2))
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.latent_noise, again.latent_noise)
    assert (first.timestep, first.drop_text, first.drop_image) == (again.timestep, again.drop_text, again.drop_image)


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
    timesteps = [draw(0, n, SHAPE, ObjectiveConfig(timestep_min=10, timestep_max=14)).timestep for n in range(200)]
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
