"""A checkpoint with one bit that is not as it was written is never trained on: file and remedy are named."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ipadapter_trainer.cli import app
from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import write_config
from ipadapter_trainer.loop import train
from ipadapter_trainer.state import CheckpointError, check_files, find_checkpoints
from support.training import make_config, write_pictures

BITS_PER_FILE = 12


@pytest.fixture
def config(tmp_path: Path, base_folder: Callable[..., Path], encoder_folder: Any) -> Config:
    return make_config(
        base_folder(),
        encoder_folder("clip"),
        write_pictures(tmp_path / "pictures"),
        tmp_path / "run",
        train={"steps": 4},
        optimizer={"ema_decay": 0.9},
    )


def flip(file: Path, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def test_every_flipped_bit_is_found(config: Config) -> None:
    train(config)
    checkpoint = find_checkpoints(config.run)[-1]
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    assert {"adapter.safetensors", "ema.safetensors", "optimizer.bin", "state.json"} <= {file.name for file in files}
    moments = random.Random(0)
    for file in files:
        name = file.relative_to(checkpoint).as_posix()
        size = 8 * file.stat().st_size
        every = (
            range(0, size, 13)
            if file.name == "state.json"
            else [0, size - 1, *moments.sample(range(size), BITS_PER_FILE)]
        )
        for bit in every:
            flip(file, bit)
            with pytest.raises(CheckpointError, match=file.name):
                check_files(checkpoint, name)
            flip(file, bit)
        file.rename(file.with_suffix(".away"))
        with pytest.raises(CheckpointError, match=file.name):
            check_files(checkpoint)  # of all
        file.with_suffix(".away").rename(file)
    check_files(checkpoint)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_goes_on(config: Config, tmp_path: Path) -> None:
    whole = train(config).losses
    first, last = find_checkpoints(config.run)
    flip(last / "rest" / "optimizer.bin", 8 * 5000)
    again = config.model_copy(update={"train": config.train.model_copy(update={"steps": 5})})
    with pytest.raises(
        CheckpointError, match=r"rest.optimizer\.bin, which is not as it was written.*delete the folder"
    ):
        train(again)
    flip(last / "adapter.safetensors", 8 * 5000)
    write_config(config, tmp_path / "my.toml")
    restart = ["train", str(tmp_path / "my.toml"), "--restart-from", str(last), "--set", "train.output=other"]
    for command in (["export", str(config.run), "--raw"], restart):
        result = CliRunner().invoke(app, command)
        assert "adapter.safetensors, which is not as it was written" in str(result.exception)
    shutil.rmtree(last)  # as it advises
    outcome = train(again)
    assert outcome.step == 5
    assert outcome.losses[:2] == whole[2:]
    assert first in find_checkpoints(config.run)
