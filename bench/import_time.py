"""Seconds that loading the pack adds to a start of ComfyUI, which prints them for every pack (`Import times`).

Each is measured in a fresh process that has ComfyUI's own modules already, from compiled code, as at every start but the
first; the medians are given. Other work on the machine lengthens `wall_s`, `cpu_s` much less, and `of_comfyui` least: the
pack's CPU time as a part of that of ComfyUI's own modules in the same process. The numbers of modules and of operations
registered with PyTorch do not depend on the machine at all.
"""

import argparse
import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from support import comfy_host  # noqa: E402

OPTIONS = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
OPTIONS.add_argument("--runs", type=int, default=9)
OPTIONS.add_argument("--once", type=Path, help="measure in this process, with this folder as ComfyUI's")
COMPILED = "PYTHONDONTWRITEBYTECODE"


def seconds() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def load(folder: Path) -> dict[str, float]:
    """What loading ComfyUI, and then the pack, costs in this process."""
    start = seconds()
    comfy_host.start_alone(folder)
    for name in ("server", "comfy_api.latest", "comfy_config.config_parser"):  # what other nodes and its loader load
        importlib.import_module(name)
    started = seconds()
    known = set(sys.modules), operations()
    begin = seconds()
    comfy_host.load_pack()
    end = seconds()
    return {
        "wall_s": end[0] - begin[0],
        "cpu_s": end[1] - begin[1],
        "of_comfyui": (end[1] - begin[1]) / (started[1] - start[1]),
        "modules": len(set(sys.modules) - known[0]),
        "operations": len(operations() - known[1]),
    }


def operations() -> set[str]:
    import torch  # loaded by ComfyUI, whose time it belongs to

    return set(torch._C._dispatch_get_all_op_names())


def measure(runs: int) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if name != COMPILED}
    measured = []
    for _ in range(runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--once", folder]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        measured.append(json.loads(done.stdout))
    return {name: round(median(run[name] for run in measured[1:]), 4) for name in measured[0]}  # the first one compiles


if __name__ == "__main__":
    options = OPTIONS.parse_args()
    with contextlib.redirect_stdout(sys.stderr):
        result: dict[str, Any] = load(options.once) if options.once else measure(options.runs)
    print(json.dumps(result))
