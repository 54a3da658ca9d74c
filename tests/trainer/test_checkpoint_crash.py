"""A process that dies at any write of a checkpoint leaves whole checkpoints behind, and the newest of them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ipadapter_trainer.run import Run, open_run
from ipadapter_trainer.state import clean_up, find_checkpoints
from support.crash import DIED, NEVER, die_before_write
from support.training import make_config, write_pictures

FEWEST = 30  # places to die at; found: 47
Files = dict[str, bytes]


@pytest.fixture
def run(tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]) -> Run:
    """After a step, with an average; only its last checkpoint is kept."""
    config = make_config(
        small_base_folder(),
        encoder_folder("clip"),
        write_pictures(tmp_path / "pictures"),
        tmp_path / "run",
        optimizer={"ema_decay": 0.9, "learning_rate": 0.01},
        checkpoint={"keep": 1},
    )
    opened = open_run(config)
    opened.step(opened.batches(0))
    return opened


def contents(run: Run) -> dict[str, Files]:
    """Files of every checkpoint by its name."""
    return {
        folder.name: {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in find_checkpoints(run.config.run)
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_crash_at_any_write_leaves_whole_checkpoints(run: Run, tmp_path: Path) -> None:
    folder, before = run.config.run / "checkpoints", tmp_path / "before"
    run.state.save()
    shutil.copytree(folder, before)
    wanted = contents(run)
    run.step(run.batches(run.state.counters.step))
    assert die_before_write(NEVER, run.state.save) == 0
    assert list(contents(run)) == ["step-00000002"]
    wanted |= contents(run)

    found, deaths, status = [], 0, DIED
    while status == DIED:
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        status = die_before_write(deaths, run.state.save)
        left = contents(run)
        assert left
        damaged = [
            f"{name}/{file}" for name in left for file in wanted[name] if left[name].get(file) != wanted[name][file]
        ]
        assert damaged == [], f"after {deaths} writes"
        found.append(max(left))
        clean_up(run.config.run)
        assert {path.name for path in folder.iterdir()} == left.keys(), "what is half is left"
        deaths += 1
    assert status == 0
    assert found == sorted(found), "what was saved is gone again"
    assert set(found) == wanted.keys()
    assert deaths > FEWEST
