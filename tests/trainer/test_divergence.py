"""A run that has diverged keeps nothing of it, and says where it was still good."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.file.container import read_tensors, write_safetensors
from ipadapter_trainer.config import Config
from ipadapter_trainer.loop import train
from ipadapter_trainer.state import CheckpointError, DivergedError, find_checkpoints
from support.training import make_config, write_pictures


@pytest.fixture
def config(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]
) -> Callable[..., Config]:
    pictures = write_pictures(tmp_path / "pictures", 4)

    def make(steps: int, **changes: dict[str, Any]) -> Config:
        often = {
            "train": {"steps": steps, "batch_size": 2, "log_every": 100, "trackers": []},
            "checkpoint": {"every": 1},
        }
        folders = small_base_folder(), encoder_folder("clip"), pictures, tmp_path / "run"
        return make_config(*folders, **often, **changes)

    return make


def test_weights_that_are_no_numbers_are_never_saved(config: Callable[..., Config]) -> None:
    """Also where the loss is read too late to notice, and the message names what the run can go on from."""
    train(config(1))
    wild = {"optimizer": {"learning_rate": 1e30, "clip_norm": 1e30, "ema_decay": 0.5}}
    with pytest.raises(DivergedError, match=r"weights that are no numbers.* at step 2.*step-00000001") as caught:
        train(config(9, **wild))
    saved = find_checkpoints(config(1).run)
    assert str(saved[-1]) in str(caught.value)
    for checkpoint in saved:
        for file in checkpoint.glob("*.safetensors"):
            assert all(value.isfinite().all() for value in read_tensors(file).tensors.values()), file
    train(config(3))  # what it advises: a lower rate, and the same command


def test_a_checkpoint_of_nan_is_not_the_one_that_is_named(config: Callable[..., Config]) -> None:
    """As an earlier version wrote them."""
    one = config(2)
    train(one)
    first, second = find_checkpoints(one.run)
    spoil(second / "adapter.safetensors")
    wild = {"optimizer": {"learning_rate": 1e30, "clip_norm": 1e30}}
    with pytest.raises(CheckpointError, match=r"step-00000002.adapter\.safetensors.*no numbers.*delete the folder"):
        train(config(9, **wild))
    shutil.rmtree(second)  # as it advises
    with pytest.raises(DivergedError, match=first.name):
        train(config(9, **wild))
    assert train(one).step == 2


def spoil(file: Path) -> None:
    found = read_tensors(file)
    tensors = {name: tensor.clone() for name, tensor in found.tensors.items()}
    next(iter(tensors.values()))[0] = torch.nan
    write_safetensors(file, tensors, found.metadata)
    stated = file.with_name("state.json")
    counters = json.loads(stated.read_text())
    stated.write_text(json.dumps({name: counters[name] for name in ("step", "samples", "pairs", "ema_step")}))


def test_nothing_good_is_said_so(config: Callable[..., Config]) -> None:
    with pytest.raises(DivergedError, match=r"no checkpoint is good yet"):
        train(
            config(
                1, optimizer={"learning_rate": 1e38, "clip_norm": 1e38}, adapter={"kind": "plus", "resampler_dim": 64}
            )
        )
