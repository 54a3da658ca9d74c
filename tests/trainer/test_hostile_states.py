"""A checkpoint that somebody else made runs no code, whatever its pickles ask for and its checksums say."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipadapter_trainer.loop import train
from ipadapter_trainer.resume.sums import FILES, SUM, file_sums, sealed
from ipadapter_trainer.state import COUNTERS, REST, CheckpointError, find_checkpoints
from support.training import make_config, write_pictures

PICKLES = ("custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl")


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "x")


def test_no_pickle_of_a_checkpoint_runs_code(
    tmp_path: Path, base_folder: Callable[..., Path], encoder_folder: Any
) -> None:
    pictures = write_pictures(tmp_path / "pictures")
    config = make_config(base_folder(), encoder_folder("clip"), pictures, tmp_path / "run", train={"steps": 2})
    train(config)
    checkpoint = find_checkpoints(config.run)[-1]
    rest, note, ran = checkpoint / REST, checkpoint / COUNTERS, tmp_path / "ran"
    assert {path.name for path in rest.iterdir() if path.suffix != ".safetensors"} == set(PICKLES)
    again = config.model_copy(update={"train": config.train.model_copy(update={"steps": 3})})
    for name in PICKLES:
        right, stated = (rest / name).read_bytes(), note.read_text(encoding="utf-8")
        (rest / name).write_bytes(pickle.dumps(Touch(ran)))
        counters = {key: value for key, value in json.loads(stated).items() if key not in (FILES, SUM)}
        note.unlink()
        note.write_text(json.dumps(sealed(counters | {FILES: file_sums(checkpoint)})), encoding="utf-8")
        with pytest.raises(CheckpointError, match=rf"{name}.*asks to run code"):
            train(again)
        assert not ran.exists()
        (rest / name).write_bytes(right)
        note.write_text(stated, encoding="utf-8")
    assert train(again).step == 3
