"""A checkpoint with one bit that is not as it was written is never trained on: file and remedy are named."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ipadapter_core.errors import UnreadableFileError
from ipadapter_core.file.container import read_tensors
from ipadapter_trainer.cli import app
from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import write_config
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.loop import train
from ipadapter_trainer.state import CheckpointError, check_files, find_checkpoints
from support.training import make_config, write_pictures

BITS_PER_FILE, SEAL_LENGTH = 12, 64


@pytest.fixture
def config(tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Any) -> Config:
    return make_config(
        small_base_folder(),
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


def test_no_flipped_bit_of_best_or_of_an_export_is_exported_or_trained_on(config: Config, tmp_path: Path) -> None:
    validated = config.model_copy(update={"validation": config.validation.model_copy(update={"every": 2, "images": 2})})
    train(validated)
    best = config.run / "best.safetensors"
    exported = export_checkpoint(config.run, tmp_path / "mine.safetensors").path
    for file in (best, exported):
        whole = tensors_and_metadata(file)
        header = 8 * (8 + int.from_bytes(file.read_bytes()[:8], "little"))
        size, found = 8 * file.stat().st_size, 0
        for bit in [*range(0, header, 61), *random.Random(0).sample(range(header, size), BITS_PER_FILE)]:
            flip(file, bit)
            try:
                read_tensors(file, verify_again=True)
                assert tensors_and_metadata(file) == whole, f"bit {bit} of {size}"  # such as the seal's own name
            except UnreadableFileError:
                found += 1
            flip(file, bit)
        assert found > header // 122
    for file in (best, exported):
        flip(file, 8 * file.stat().st_size - 8)
    with pytest.raises(UnreadableFileError, match=r"best\.safetensors"):
        export_checkpoint(config.run, None, weights="best")
    another = validated.model_copy(
        update={
            "adapter": config.adapter.model_copy(update={"pretrained": str(exported)}),
            "train": config.train.model_copy(update={"output": str(tmp_path / "another")}),
        }
    )
    with pytest.raises(UnreadableFileError, match=r"mine\.safetensors"):
        train(another)


def tensors_and_metadata(file: Path) -> tuple[list[object], list[object]]:
    """All that is read of a file, but for its seal under whatever name."""
    read = read_tensors(file)
    tensors = [(name, tensor.tolist()) for name, tensor in sorted(read.tensors.items())]
    return tensors, [pair for pair in sorted(read.metadata.items()) if len(pair[1]) != SEAL_LENGTH]
