"""Processes that tests kill: children of a server that has imported everything, so that they die in their work."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess

import pytest

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["support.training", "support.cache_worker"])


def start(target: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """Run a function of an importable module in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server, which starts here, gets no sys.path
        process = _SERVER.Process(target=target, args=arguments, daemon=True)
        process.start()
    return process
