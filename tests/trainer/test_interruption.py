"""Whatever ends a run, it can go on: a kill at any moment, SIGTERM, Ctrl-C, and two processes in place of one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.network.adapter import load_adapter
from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import write_config
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.state import ADAPTER, COUNTERS, find_checkpoints
from support import processes
from support.training import make_config, train_with_one_thread, write_pictures

ROOT = Path(__file__).parents[2]
KILLS, STEPS = 3, 24


@pytest.fixture
def config(tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]) -> Any:
    pictures = write_pictures(tmp_path / "pictures")

    def make(run: str, steps: int, **changes: dict[str, Any]) -> Config:
        train_settings = {"steps": steps, "batch_size": 1, "log_every": 1, "trackers": [], **changes.pop("train", {})}
        return make_config(
            small_base_folder(), encoder_folder("clip"), pictures, tmp_path / run, train=train_settings, **changes
        )

    return make


def start(config: Config) -> ForkServerProcess:
    return processes.start(train_with_one_thread, config)


def weights(config: Config) -> dict[str, torch.Tensor]:
    return load_adapter(find_checkpoints(config.run)[-1] / ADAPTER).state_dict()


def wait_for_steps(config: Config, steps: int, since: float) -> None:
    """Until a process that was started at a time has logged that many steps."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if sum(record["kind"] == "train" and record["time"] > since for record in read_records(config.run)) >= steps:
            return
        time.sleep(0.01)
    raise AssertionError(f"{steps} steps were not done in a minute")


def test_killed_at_any_moment_a_run_goes_on(config: Any) -> None:
    """`test_checkpoint_crash.py` has every moment of a save; here whole processes die, each step of which saves."""
    every_step = {"every": 1, "keep": 2}
    killed, whole = (config(name, STEPS, checkpoint=every_step) for name in ("killed", "whole"))
    moments = random.Random(0)
    reached = [0]
    for _ in range(KILLS):
        started = time.time()
        process = start(killed)
        wait_for_steps(killed, 1, started)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.join()
        for folder in find_checkpoints(killed.run):
            step = json.loads((folder / COUNTERS).read_text())["step"]
            assert folder.name == f"step-{step:08d}"
            load_adapter(folder / ADAPTER)
        done = find_checkpoints(killed.run)
        reached.append(int(done[-1].name.removeprefix("step-")) if done else 0)
    assert reached == sorted(reached)
    assert 0 < reached[-1] < STEPS, f"the kills came before the first step or after the end: {reached}"
    train(killed)
    train(whole)
    wanted = weights(whole)
    assert all(torch.equal(wanted[name], value) for name, value in weights(killed).items())
    assert [record["step"] for record in read_records(killed.run)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_leaves(config: Any, number: int) -> None:
    stopped, whole = config("stopped", 200, checkpoint={"every": 1000}), config("whole", 200)
    started = time.time()
    process = start(stopped)
    wait_for_steps(stopped, 2, started)
    os.kill(process.pid or 0, number)
    process.join(60)
    assert process.exitcode == 0
    (checkpoint,) = find_checkpoints(stopped.run)
    step = json.loads((checkpoint / COUNTERS).read_text())["step"]
    assert 2 <= step < 200
    assert read_records(stopped.run)[-1]["step"] == step
    short = {"steps": step + 2}
    for one in (stopped, whole):
        train(one.model_copy(update={"train": one.train.model_copy(update=short)}))
    wanted = weights(whole)
    assert all(torch.equal(wanted[name], value) for name, value in weights(stopped).items())


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_train_like_one_with_twice_the_batch(config: Any, tmp_path: Path) -> None:
    """The same samples, and weights that differ by the rounding of sums alone: 1 % of what training changed."""
    two = config("two", 6, train={"batch_size": 2})
    one = config("one", 6, train={"batch_size": 4})
    write_config(two, tmp_path / "two.toml")
    done = launch("train", str(tmp_path / "two.toml"), "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    outcome = train(one)
    assert result["samples"] == outcome.samples == 24
    losses = [record["loss"] for record in read_records(two.run)]
    assert losses == pytest.approx(list(outcome.losses), rel=1e-4)
    start_weights = weights(config_at_start(config))
    given, wanted = weights(two), weights(one)
    apart = sum((given[name] - wanted[name]).square().sum() for name in wanted) ** 0.5
    moved = sum((wanted[name] - start_weights[name]).square().sum() for name in wanted) ** 0.5
    assert apart < 0.01 * moved


def launch(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The program in two processes; `accelerate launch` starts several on GPUs only."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "-m",
        "ipadapter_trainer",
        *arguments,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def config_at_start(config: Any) -> Config:
    """A run whose only step changes next to nothing: where all others begin."""
    still: Config = config("still", 1, optimizer={"learning_rate": 1e-12, "weight_decay": 0.0})
    train(still)
    return still
