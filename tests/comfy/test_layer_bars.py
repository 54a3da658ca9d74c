"""IP-Adapter Layer Weights shows what its factors do: a bar for each group, or for each block of a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host, families
from support.families import EACH, FAMILIES

GROUPS = dict.fromkeys(("input", "middle", "output", "style", "composition"), 1.0)


def shown(**given: Any) -> dict[str, float]:
    """Name and height of the bars that are drawn."""
    module = comfy_host.pack("nodes.definitions.layer_weights")
    seen: list[dict[str, float]] = []
    with pytest.MonkeyPatch.context() as patch:
        levels = module.levels
        patch.setattr(module, "levels", lambda values: seen.append(dict(values)) or levels(values))
        comfy_host.run("IPALayerWeights", **{**GROUPS, "site_factors": ""} | given)
    return seen[0]


def test_without_a_model_the_groups_are_drawn(base_directory: Path) -> None:
    assert shown(middle=0.5, style=-1.0) == GROUPS | {"middle": 0.5, "style": -1.0}


def test_a_preset_lights_its_blocks(model: Callable) -> None:
    given = model("sdxl")
    every, style = (shown(model=given, layer_preset=preset) for preset in ("all", "style"))
    assert set(every.values()) == {1.0}
    assert sum(map(bool, style.values())) == 1
    assert next(iter(every)).startswith("input")
    assert list(every)[-1].startswith("output")


@pytest.mark.parametrize("name", EACH)
def test_factors_show_on_their_blocks(name: str, base_directory: Path) -> None:
    given = families.model_of(name)
    site = FAMILIES[name].sites[1]
    block = f"{site[0]}.{site[1]}"
    bars = shown(model=given, site_factors=f"{block}: 0.25")
    assert bars[block] == 0.25
    assert {value for other, value in bars.items() if other != block} == {1.0}


@pytest.mark.parametrize("layer", [0, 1])
def test_a_block_is_as_high_as_the_one_of_its_layers_that_does_most(model: Callable, layer: int) -> None:
    given, other = model("sdxl"), 1 - layer
    assert shown(model=given, site_factors=f"middle.0.{layer}: -1.5")["middle.0"] == -1.5
    assert shown(model=given, site_factors=f"middle.0.{layer}: 0.25")["middle.0"] == 1.0
    assert shown(model=given, site_factors=f"middle.0.{layer}: 0.25, middle.0.{other}: 0")["middle.0"] == 0.25


def test_a_layer_the_model_does_not_have_is_said_at_once(model: Callable) -> None:
    with pytest.raises(ValueError, match="which this model does not have"):
        shown(model=model("sd15"), site_factors="99: 0")


def test_bars_are_as_high_as_their_factors(base_directory: Path) -> None:
    levels = comfy_host.pack("nodes.previews").levels
    picture = levels({"a": 1.0, "b": 0.5, "c": 0.0})[0]
    blue = (picture[..., 2] > 0.8) & (picture[..., 0] < 0.4)
    heights = [int(blue[:, left : left + 40].any(dim=1).sum()) for left in (30, 110, 190)]
    assert heights[0] == pytest.approx(2 * heights[1], abs=2)
    assert heights[2] == 0
    assert torch.isfinite(picture).all()
