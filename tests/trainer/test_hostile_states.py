"""A checkpoint that somebody else made runs no code, whatever its pickles ask for and its checksums say."""

import io
import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_trainer.config import Config
from ipadapter_trainer.loop import train
from ipadapter_trainer.resume.sums import FILES, SUM, file_sums, sealed
from ipadapter_trainer.state import COUNTERS, REST, CheckpointError, find_checkpoints
from support.rank_work import train_sharded, train_with_deepspeed
from support.ranks import run_ranks
from support.training import make_config, write_pictures

PICKLES = ("custom_checkpoint_0.pkl", "optimizer.bin", "random_states_0.pkl")


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "x")


def hostile_list(parts: Path, ran: Path) -> None:
    """The list of FSDP's parts asks for more than it needs."""
    (parts / ".metadata").write_bytes(pickle.dumps(Touch(ran)))


def hostile_setting(parts: Path, ran: Path) -> None:
    """A number of the optimiser, which lies as a pickle of its own in a part, is something else."""
    index = pickle.loads((parts / ".metadata").read_bytes())
    name, place = next((name, place) for name, place in index.storage_data.items() if name.fqn.endswith(".lr"))
    file, content = parts / place.relative_path, io.BytesIO()
    torch.save(Touch(ran), content)
    index.storage_data[name] = replace(place, offset=file.stat().st_size, length=len(content.getvalue()))
    file.write_bytes(file.read_bytes() + content.getvalue())
    (parts / ".metadata").write_bytes(pickle.dumps(index))


def hostile_state(parts: Path, ran: Path) -> None:
    """What DeepSpeed keeps of its optimiser is something else."""
    (file,) = parts.glob("*_optim_states.pt")
    torch.save(Touch(ran), file)


def refused(work: Callable[[Config], None], config: Config, said: Path) -> None:
    """Go on with a run in parts; what it says."""
    try:
        work(config)
    except CheckpointError as error:
        said.write_text(str(error), encoding="utf-8")


HOSTILE = {
    "FSDP": (
        train_sharded,
        "optimizer_0",
        {hostile_list: r"\.metadata asks to run", hostile_setting: "rest asks to run"},
    ),
    "DeepSpeed": (train_with_deepspeed, "pytorch_model", {hostile_state: "rest asks to run"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_pickle_in_the_parts_of_a_checkpoint_runs_code(
    tmp_path: Path, small_base_folder: Callable[[str], Path], encoder_folder: Any, kind: str
) -> None:
    if kind == "DeepSpeed":
        pytest.importorskip("deepspeed", reason="pip install deepspeed")
    work, parts, spoilers = HOSTILE[kind]
    pictures = write_pictures(tmp_path / "pictures")
    config = make_config(
        small_base_folder("sd15"), encoder_folder("clip"), pictures, tmp_path / "run", train={"steps": 1}
    )
    assert run_ranks(1, work, config) == [0]
    checkpoint, ran, said = find_checkpoints(config.run)[-1], tmp_path / "ran", tmp_path / "said"
    again = config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})})
    for spoil, message in spoilers.items():
        shutil.copytree(checkpoint, tmp_path / "whole")
        spoil(checkpoint / REST / parts, ran)
        write_sums(checkpoint)
        assert run_ranks(1, refused, work, again, said) == [0]
        assert not ran.exists()
        assert re.search(message, said.read_text(encoding="utf-8"))
        said.unlink()
        shutil.rmtree(checkpoint)
        (tmp_path / "whole").rename(checkpoint)
    assert run_ranks(1, work, again) == [0]
    assert find_checkpoints(config.run)[-1].name.endswith("2")


def write_sums(checkpoint: Path) -> None:
    """As whoever changed its files would."""
    note = checkpoint / COUNTERS
    stated = json.loads(note.read_text(encoding="utf-8"))
    counters = {key: value for key, value in stated.items() if key not in (FILES, SUM)}
    note.unlink()
    note.write_text(json.dumps(sealed(counters | {FILES: file_sums(checkpoint)})), encoding="utf-8")


def test_no_pickle_of_a_checkpoint_runs_code(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Any
) -> None:
    pictures = write_pictures(tmp_path / "pictures")
    config = make_config(small_base_folder(), encoder_folder("clip"), pictures, tmp_path / "run", train={"steps": 2})
    train(config)
    checkpoint = find_checkpoints(config.run)[-1]
    rest, note, ran = checkpoint / REST, checkpoint / COUNTERS, tmp_path / "ran"
    assert {path.name for path in rest.iterdir() if path.suffix != ".safetensors"} == set(PICKLES)
    again = config.model_copy(update={"train": config.train.model_copy(update={"steps": 3})})
    for name in PICKLES:
        right, stated = (rest / name).read_bytes(), note.read_text(encoding="utf-8")
        (rest / name).write_bytes(pickle.dumps(Touch(ran)))
        write_sums(checkpoint)
        with pytest.raises(CheckpointError, match=rf"{name}.*asks to run code"):
            train(again)
        assert not ran.exists()
        (rest / name).write_bytes(right)
        note.write_text(stated, encoding="utf-8")
    assert train(again).step == 3
