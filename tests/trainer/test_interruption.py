"""Whatever ends a run, it can go on: a kill at any moment, SIGTERM, Ctrl-C, and two processes in place of one."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.network.adapter import load_adapter
from support.training import make_config, train_with_one_thread, write_pictures
from trainer.config import Config
from trainer.config_file import write_config
from trainer.loop import train
from trainer.state import ADAPTER, COUNTERS, find_checkpoints
from trainer.watch.curves import read_records

ROOT = Path(__file__).parents[2]
KILLS, STEPS = 20, 80
# Children of a server that has imported everything die in training, not in importing.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["support.training"])


@pytest.fixture(scope="module", autouse=True)
def path_of_the_server() -> Iterator[None]:
    """The server does not get this process's sys.path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield


@pytest.fixture
def config(tmp_path: Path, base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]) -> Any:
    pictures = write_pictures(tmp_path / "pictures")

    def make(run: str, steps: int, **changes: dict[str, Any]) -> Config:
        train_settings = {"steps": steps, "batch_size": 1, "log_every": 1, "trackers": [], **changes.pop("train", {})}
        return make_config(
            base_folder(), encoder_folder("clip"), pictures, tmp_path / run, train=train_settings, **changes
        )

    return make


def start(config: Config) -> ForkServerProcess:
    process = SERVER.Process(target=train_with_one_thread, args=(config,), daemon=True)
    process.start()
    return process


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


def kill_somewhere(config: Config, kill: int, moments: random.Random) -> None:
    """Each fourth kill hits the start of a run, the others its steps, each of which writes a checkpoint."""
    started = time.time()
    process = start(config)
    if kill % 4:
        wait_for_steps(config, 1, started)
        time.sleep(moments.uniform(0, 0.3))
    else:
        time.sleep(moments.uniform(0, 1))
    process.kill()
    process.join()


@pytest.mark.slow
def test_killed_at_any_moment_a_run_goes_on(config: Any) -> None:
    every_step = {"every": 1, "keep": 2}
    killed, whole = (config(name, STEPS, checkpoint=every_step) for name in ("killed", "whole"))
    moments = random.Random(0)
    reached = []
    for kill in range(KILLS):
        before = reached[-1] if reached else 0
        kill_somewhere(killed, kill, moments)
        for folder in find_checkpoints(killed.run):
            step = json.loads((folder / COUNTERS).read_text())["step"]
            assert folder.name == f"step-{step:08d}"
            load_adapter(folder / ADAPTER)
        done = find_checkpoints(killed.run)
        reached.append(int(done[-1].name.removeprefix("step-")) if done else 0)
        assert reached[-1] >= before
    assert len(set(reached)) > KILLS / 2, f"too few kills came between steps: {reached}"
    assert reached[-1] < STEPS, "the last kills came after the end"
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


@pytest.mark.slow
def test_two_processes_train_like_one_with_twice_the_batch(config: Any, tmp_path: Path) -> None:
    """The same samples, and weights that differ by the rounding of sums alone: 1 % of what training changed."""
    two = config("two", 6, train={"batch_size": 2})
    one = config("one", 6, train={"batch_size": 4})
    write_config(two, tmp_path / "two.toml")
    # `accelerate launch` starts several processes on GPUs only
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "trainer"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, "train", str(tmp_path / "two.toml"), "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
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


def config_at_start(config: Any) -> Config:
    """A run whose only step changes next to nothing: where all others begin."""
    still: Config = config("still", 1, optimizer={"learning_rate": 1e-12, "weight_decay": 0.0})
    train(still)
    return still
