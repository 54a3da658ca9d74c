"""The parts of the autoencoder's training, one or two steps each."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

from demo.world import autoencoder
from demo.world.training import RESULT


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(256, (5, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    def shortened(stage: autoencoder.Stage, steps: int) -> autoencoder.Stage:
        return replace(stage, recipe=replace(stage.recipe, steps=steps, warmup=1), batch=2)

    for stages, steps in ((autoencoder.STAGES, 1), (autoencoder.DECODER_STAGES, 2)):
        for name, stage in stages.items():
            monkeypatch.setitem(stages, name, shortened(stage, steps))


def train(pixels: torch.Tensor, folder: Path) -> AutoencoderTiny:
    model = autoencoder.train_autoencoder(pixels, folder)
    return autoencoder.train_decoder(model, pixels, autoencoder.latents_of(model, pixels), folder)


def test_the_decoder_is_taught_last_and_alone(pixels: torch.Tensor, tmp_path: Path) -> None:
    made = train(pixels, tmp_path).state_dict()
    before = load_file(tmp_path / "polish" / RESULT)
    same = {name for name, value in made.items() if torch.equal(value, before[name])}
    assert same >= {name for name in made if name.startswith("encoder.")}  # the latents' model stays what it was
    weights = {name for name in made if name.startswith("decoder.") and name.endswith(".weight")}
    assert not weights & same
    between = {f"decoder.{name}": value for name, value in load_file(tmp_path / "decoder" / RESULT).items()}
    assert not any(torch.equal(made[name], between[name]) for name in weights)


def test_a_finished_autoencoder_is_read(pixels: torch.Tensor, tmp_path: Path) -> None:
    made = train(pixels, tmp_path)
    again = train(pixels, tmp_path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in made.state_dict().items())
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
