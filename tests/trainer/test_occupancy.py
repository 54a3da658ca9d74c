"""Two trainers in one run folder: the second is refused by name of the first, and goes on when the first was killed."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import write_config
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.resume import occupancy
from ipadapter_trainer.resume.occupancy import LOCK, OWNER, OccupiedError, occupied
from ipadapter_trainer.state import CheckpointError, find_checkpoints
from support.processes import start_training
from support.rank_work import hold
from support.ranks import run_ranks
from support.training import make_config, write_pictures

DEAD = 2**22 + 1  # above the largest number of a process


@pytest.fixture
def config(tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Any) -> Any:
    pictures = write_pictures(tmp_path / "pictures")

    def make(steps: int) -> Config:
        settings = {"steps": steps, "batch_size": 1, "log_every": 1, "trackers": []}
        return make_config(
            small_base_folder(),
            encoder_folder("clip"),
            pictures,
            tmp_path / "run",
            data={"workers": 1},
            train=settings,
            checkpoint={"every": 1},
        )

    return make


@pytest.mark.long
@pytest.mark.slow
def test_the_second_trainer_is_refused_and_goes_on_when_the_first_was_killed(config: Any, tmp_path: Path) -> None:
    write_config(config(10_000), tmp_path / "my.toml")
    run = config(1).run
    first = start_training(tmp_path / "my.toml", run)
    with pytest.raises(OccupiedError, match=rf"process {first.pid} on {socket.gethostname()} trains in") as caught:
        train(config(10_000))
    assert str(run / LOCK) in str(caught.value)
    assert first.poll() is None
    first.kill()  # but not its data workers
    first.wait()
    step = int(find_checkpoints(run)[-1].name.removeprefix("step-"))
    assert train(config(step + 2)).step == step + 2  # at once, though a data worker may live on for some seconds
    assert [record["step"] for record in read_records(run)] == list(range(1, step + 3))
    assert not (run / LOCK).exists()
    assert not (run / OWNER).exists()


def claim(run: Path, host: str, process: int) -> FileLock:
    run.mkdir()
    lock = FileLock(run / LOCK)
    lock.acquire()
    (run / OWNER).write_text(json.dumps({"host": host, "process": process}))
    return lock


def test_a_trainer_of_another_machine_is_named(tmp_path: Path) -> None:
    lock = claim(tmp_path / "run", "elsewhere", DEAD)
    with (
        pytest.raises(OccupiedError, match=f"process {DEAD} on elsewhere.*delete") as caught,
        occupied(tmp_path / "run"),
    ):
        pass
    (tmp_path / "run" / LOCK).unlink()  # as it advises where that machine is gone
    assert str(tmp_path / "run" / LOCK) in str(caught.value)
    with occupied(tmp_path / "run"):
        pass
    lock.release()


@pytest.mark.long
@pytest.mark.slow
def test_processes_of_a_launch_hold_a_folder_together_and_are_refused_together(
    tmp_path: Path,
) -> None:
    held = tmp_path / "held"
    held.mkdir()
    lock = claim(tmp_path / "run", "elsewhere", DEAD)
    assert run_ranks(2, hold, tmp_path / "run", held) == [1, 1]
    (said,) = held.iterdir()
    assert said.name.endswith("says why")
    said.unlink()
    lock.release()
    assert run_ranks(2, hold, tmp_path / "run", held) == [0, 0]
    assert {path.name for path in held.iterdir()} == {"0", "1"}


@pytest.mark.skipif(os.name == "nt", reason="the system unlocks there")
def test_a_lock_that_outlives_its_process_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system without locks, where the file itself is the lock."""
    monkeypatch.setattr(occupancy, "_PATIENCE", 0.5)
    lock = claim(tmp_path / "run", socket.gethostname(), DEAD)
    with occupied(tmp_path / "run"):
        owner = json.loads((tmp_path / "run" / OWNER).read_text())
        assert owner == {"host": socket.gethostname(), "process": os.getpid()}
        with pytest.raises(OccupiedError, match=f"process {os.getpid()}"), occupied(tmp_path / "run"):
            pass
    lock.release()


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = r"train\.output = .*in which nothing can be written"
    with pytest.raises(CheckpointError, match=message), occupied(tmp_path / "file" / "run"):
        pass


def test_what_fails_at_once_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyError), occupied(tmp_path / "run"):
        raise KeyError
    assert not (tmp_path / "run").exists()
