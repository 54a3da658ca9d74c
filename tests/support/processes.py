"""Processes that tests kill: children of a server that has imported everything, so that they die in their work."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
START_SECONDS = 400  # a busy machine may take to import all that a training needs
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["support.training", "support.cache_worker"])


def start(target: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """Run a function of an importable module in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server, which starts here, gets no sys.path
        process = _SERVER.Process(target=target, args=arguments, daemon=True)
        process.start()
    return process


def start_training(
    config_file: Path, run: Path, *launcher: str, options: Sequence[str] = (), stdin: int | None = None
) -> "subprocess.Popen[str]":
    """`ipadapter train` in a process group of its own, as a terminal starts it, when it has done three steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launcher, "-m", "ipadapter_trainer", "train", str(config_file), *options]
    process = subprocess.Popen(
        command,
        cwd=_ROOT,
        env=environment,
        stdin=stdin,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + START_SECONDS
    metrics = run / "metrics.jsonl"
    try:
        while not metrics.exists() or metrics.read_text().count('"kind": "train"') < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
    except BaseException:
        process.kill()  # else it would train on beside all other tests
        process.wait()
        raise
    return process
