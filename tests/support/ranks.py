"""Several processes of one run on this machine's CPU, as a launcher starts them."""

import os
import socket
from collections.abc import Callable
from contextlib import closing

from .processes import start

SECONDS = 300


def run_ranks(size: int, target: Callable[..., object], *arguments: object) -> list[int | None]:
    """Run a function of an importable module in `size` processes that know of each other; their exit codes."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [start(_as_rank, rank, size, port, target, *arguments) for rank in range(size)]
    for process in processes:
        process.join(SECONDS)
        process.kill()
    return [process.exitcode for process in processes]


def _as_rank(rank: int, size: int, port: int, target: Callable[..., object], *arguments: object) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}
    target(*arguments)
