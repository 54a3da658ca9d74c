"""Runs Python in a process in which nobody gets onto the network, and says who tried."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Whatever library asks: Python tells of every name that is looked up and every connection.
_WATCH = """
import gc, importlib, json, pkgutil, sys
gc.disable()  # among modules there is no garbage, and looking for it takes a fourth of the time
asked = []
def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        asked.append(str(arguments[0]))
    elif event in ("socket.connect", "socket.sendto"):
        asked.append(str(arguments[1]))
    else:
        return
    raise OSError("no network in this test")
sys.addaudithook(watch)
"""
PROGRAM = """
from ipadapter_trainer.cli import main
sys.argv[0] = "ipadapter"
try:
    main()
except SystemExit as end:
    result = end.code
"""
_IMPORT_ALL = """
package = importlib.import_module(sys.argv[1])
names = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
result = [names, sorted(sys.modules)]
"""
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")  # a user's machine has none of them
SECONDS = 240


def run_watched(code: str, *arguments: str) -> tuple[Any, list[str]]:
    """What `code` leaves in `result`, and the names and addresses that were asked for."""
    ending = "\nprint()\nprint(json.dumps([result, asked]))"
    done = subprocess.run(
        [sys.executable, "-c", _WATCH + code + ending, *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in _OFFLINE},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result, asked = json.loads(done.stdout.splitlines()[-1])
    return result, asked


@cache  # several ask, and it takes half a minute
def import_all(package: str) -> tuple[list[str], list[str], list[str]]:
    """A package's modules, all that is imported with them, and who of the network they asked for."""
    (names, imported), asked = run_watched(_IMPORT_ALL, package)
    return names, imported, asked
