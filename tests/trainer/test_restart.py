"""`--restart-from`: another run begins with the weights of a checkpoint, and with nothing else of it."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ipadapter_core.file.container import read_tensors
from ipadapter_trainer.cli import app
from ipadapter_trainer.config_file import write_config
from ipadapter_trainer.loop import train
from ipadapter_trainer.state import CheckpointError, find_checkpoints
from support.training import make_config, write_pictures

STILL = {"learning_rate": 1e-12, "weight_decay": 0.0}


@pytest.fixture
def place(tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Any, monkeypatch: Any) -> Path:
    """A folder with a finished run of two steps and its config `my.toml`, and `other.toml` with another objective."""
    monkeypatch.chdir(tmp_path)
    folders = small_base_folder(), encoder_folder("clip"), write_pictures(tmp_path / "pictures"), Path("runs/my run")
    one = make_config(*folders, train={"steps": 2}, optimizer={"learning_rate": 0.1})
    train(one)
    write_config(one, Path("my.toml"))
    write_config(make_config(*folders, optimizer=STILL, objective={"noise_offset": 0.1}), Path("other.toml"))
    return tmp_path


def weights(run: str) -> dict[str, torch.Tensor]:
    return read_tensors(find_checkpoints(Path(run))[-1] / "adapter.safetensors").tensors


def call(command: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*shlex.split(command), "--json"])
    if result.exception:
        raise result.exception
    found: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


def test_the_advice_of_a_refused_run_is_possible(place: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        call("train other.toml")
    (advice,) = re.findall(r"`ipadapter (.*?)`", str(caught.value))
    command = advice.replace("CONFIG", "other.toml").replace("ANOTHER_FOLDER", "runs/second")
    done = call(command)
    assert (done["step"], done["samples"]) == (4, 8)  # counted anew
    before, after = weights("runs/my run"), weights("runs/second")
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert any(value.abs().max() > 0.05 for value in before.values())


def test_weights_that_do_not_fit_are_no_advice(place: Path) -> None:
    for change in ("adapter.tokens=8", "adapter.kind=full"):
        with pytest.raises(CheckpointError) as caught:
            call(f"train my.toml --set {change}")
        (advice,) = re.findall(r"`ipadapter (.*?)`", str(caught.value))
        folder = f"runs/{change.partition('=')[2]}"
        command = advice.replace("CONFIG", f"my.toml --set {change}").replace("ANOTHER_FOLDER", folder)
        assert call(f"{command} --set train.steps=1")["step"] == 1


@pytest.mark.parametrize("source", ["runs/my run", "runs/my run/checkpoints/step-00000002"])
def test_the_same_command_goes_on_with_what_it_began(place: Path, source: str) -> None:
    command = f"train my.toml --restart-from '{source}' --set train.output=second"
    assert call(f"{command} --set train.steps=1")["step"] == 1
    assert call(f"{command} --set train.steps=3")["step"] == 3
    assert call("train my.toml --set train.output=second --set train.steps=4")["step"] == 4  # without it as well


def test_the_checkpoint_is_the_file_that_frozen_layers_come_from(place: Path) -> None:
    others = "--set adapter.blocks=style --set adapter.other_blocks=frozen"
    command = f"train my.toml {others} --restart-from 'runs/my run' --set train.output=second"
    assert call(f"{command} --set train.steps=1")["step"] == 1
    assert call(f"{command} --set train.steps=2")["step"] == 2
    before, after = weights("runs/my run"), weights("second")
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert any("to_k_ip" in name for name in same)
    assert any("to_k_ip" in name for name in before.keys() - same)


def test_a_folder_that_holds_another_run_is_refused(place: Path) -> None:
    for command in ("train my.toml --restart-from 'runs/my run'", "train other.toml --restart-from 'runs/my run'"):
        with pytest.raises(
            CheckpointError, match=r"holds a run already.*train\.output=ANOTHER.*leave --restart-from out"
        ):
            call(command)
    assert call("train my.toml")["step"] == 2  # left out


def test_what_is_no_checkpoint_is_said(place: Path) -> None:
    with pytest.raises(CheckpointError, match="pictures is no checkpoint and has none"):
        call("train my.toml --restart-from pictures --set train.output=second")
