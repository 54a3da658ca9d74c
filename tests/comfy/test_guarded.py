"""IP-Adapter Guard on every kind of base model: neutral is nothing, each part acts, and strength 0 stays nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host, families
from support.families import EACH, apply, sample

pytestmark = pytest.mark.parametrize("name", EACH)
OFF = {"orthogonal": 0.0, "rescale": 0.0, "noise": 0.0}


@pytest.fixture
def setting(name: str, base_directory: Path) -> families.Setting:
    return families.setting_of(name, base_directory)


def guard(**changes: float) -> Any:
    return comfy_host.run("IPAGuard", **OFF | changes)


def test_the_neutral_one_draws_what_none_draws(name: str, setting: tuple) -> None:
    assert torch.equal(sample(name, apply(*setting, guard=guard())), sample(name, apply(*setting)))


@pytest.mark.parametrize("part", OFF)
def test_each_part_acts_and_strength_0_is_still_nothing(name: str, setting: tuple, part: str) -> None:
    if name == "anima_lucifer_early" and part != "noise":
        with pytest.raises(ValueError, match="What to do: set orthogonal and rescale of the guard to 0"):
            apply(*setting, guard=guard(**{part: 0.7}))
        return
    drawn = sample(name, apply(*setting, guard=guard(**{part: 0.7})))
    assert drawn.isfinite().all()
    assert not torch.allclose(drawn, sample(name, apply(*setting)), rtol=1e-3)
    assert apply(*setting, strength=0.0, guard=guard(**{part: 0.7})) is setting[0]
