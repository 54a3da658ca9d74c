"""Ctrl-C goes to every process of a terminal: one of them answers."""

import logging
import multiprocessing
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ipadapter_trainer.config_file import write_config
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.state import find_checkpoints
from ipadapter_trainer.stop import stop_on_signals
from support.processes import start_training
from support.training import make_config, write_pictures

ASKED = "asked to stop"


@pytest.fixture
def config_file(tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Any) -> Path:
    pictures = write_pictures(tmp_path / "pictures")
    config = make_config(
        small_base_folder(),
        encoder_folder("clip"),
        pictures,
        tmp_path / "run",
        data={"workers": 2},
        train={"steps": 10_000, "batch_size": 1, "log_every": 1, "trackers": []},
        checkpoint={"every": 10_000},
    )
    write_config(config, tmp_path / "my.toml")
    return tmp_path / "my.toml"


def end(process: "subprocess.Popen[str]", number: int) -> str:
    os.killpg(process.pid, number)
    return process.communicate(timeout=300)[1]


@pytest.mark.slow
def test_ctrl_c_is_answered_once_and_data_workers_go_on(config_file: Path) -> None:
    process = start_training(config_file, config_file.parent / "run", stdin=subprocess.DEVNULL)
    assert process.poll() is None, "what does not ask for its input may have none"
    said = end(process, signal.SIGINT)
    assert process.returncode == 0, said[-2000:]
    assert said.count(ASKED) == 1
    assert "Traceback" not in said
    step = read_records(config_file.parent / "run")[-1]["step"]
    assert find_checkpoints(config_file.parent / "run")[-1].name == f"step-{step:08d}"


@pytest.mark.long  # tests/comfy/test_train.py stops one so, and looks at what it leaves
@pytest.mark.slow
def test_the_end_of_its_input_is_an_answer_to_who_asked_for_it(config_file: Path) -> None:
    run = config_file.parent / "run"
    options = ["--stop-with-input", "--set", "data.workers=0"]
    process = start_training(config_file, run, options=options, stdin=subprocess.PIPE)
    _, said = process.communicate(timeout=300)  # closes it
    assert process.returncode == 0, said[-2000:]
    assert said.count(ASKED) == 1
    assert "Traceback" not in said
    assert find_checkpoints(run)[-1].name == f"step-{read_records(run)[-1]['step']:08d}"


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_answer_once(config_file: Path) -> None:
    process = start_training(
        config_file, config_file.parent / "run", "-m", "torch.distributed.run", "--nproc_per_node", "2"
    )
    said = end(process, signal.SIGINT)
    assert said.count(ASKED) == 1
    assert "trains in" not in said
    assert not re.search("Traceback.*ipadapter|Traceback.*trainer", said)
    assert find_checkpoints(config_file.parent / "run")


def _be_signalled(result: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    result.put("alive")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_copy_of_the_process_is_not_asked(caplog: pytest.LogCaptureFixture) -> None:
    context = multiprocessing.get_context("fork")
    result = context.Queue()
    with caplog.at_level(logging.WARNING), stop_on_signals(speaks=True) as stop:
        child = context.Process(target=_be_signalled, args=(result,))
        child.start()
        assert result.get(timeout=30) == "alive"
        child.join(30)
        assert not stop.is_asked
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_asked
    assert caplog.text.count(ASKED) == 1
    with stop_on_signals(speaks=False) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_asked
    assert caplog.text.count(ASKED) == 1
