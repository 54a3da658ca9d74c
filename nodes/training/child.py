"""The trainer as a child process: started without a shell, asked to stop through its standard input, killed at last."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management

from ...ipadapter_core.errors import IPAdapterError, shown
from .places import SUGGESTED

ROOT = Path(__file__).resolve().parents[2]
_POLL = 0.2  # seconds
_PATIENCE = 120.0  # seconds: a step, and a checkpoint on a slow disk
_READ = 16_384  # bytes of a log's end
_MISSING = re.compile(r"No module named '?([\w.]+)|cannot import name '?\w+'? from '?([\w.]+)")
_OLDER = re.compile(r"No such (?:option|command)")  # another ipadapter than this pack's
_OUT_OF_MEMORY = re.compile(r"out of memory|DefaultCPUAllocator|MemoryError", re.IGNORECASE)
_LAST = 3  # lines in which Python says why it ended
_KILLED = -9
_ERROR = "error: Found: "  # how the trainer begins what it says to a person


class TrainingError(IPAdapterError):
    """The trainer is not there, or ended before it had finished."""


class ToldError(TrainingError):
    """What the trainer says itself, and how the page goes on."""

    def __init__(self, told: str, goes_on: str) -> None:
        ValueError.__init__(self, f"Found: {told} Then {goes_on}.")
        self.found = told


class Child:
    """`ipadapter` at work.

    Args:
        arguments: of the program.
        log: gets what it says, after what stands there.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.log = log
        self._begins = log.stat().st_size if log.is_file() else 0
        with log.open("ab") as said:  # a file: a pipe would break with the server, and with it the last checkpoint
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ipadapter_trainer", *arguments],
                cwd=ROOT,  # the first place where Python looks for modules; nobody's pictures lie there
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                **_OWN_GROUP,
            )

    @property
    def code(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    def lines(self) -> list[str]:
        """The last ones it said."""
        with self.log.open("rb") as said:
            end = said.seek(0, os.SEEK_END)
            said.seek(max(self._begins, end - _READ))
            text = said.read().decode("utf-8", errors="replace")
        return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]

    def wait(self, each: Callable[[], object], stopping: Callable[[], object]) -> None:
        """Until it ends; `each` is called now and then. Whatever ends the waiting ends the child, in good order.

        Args:
            stopping: is called when the child is asked to stop.
        """
        try:
            while self.code is None:
                comfy.model_management.throw_exception_if_processing_interrupted()
                each()
                time.sleep(_POLL)
        finally:
            if self.code is None:
                stopping()
                self.stop()
            self._close()

    def stop(self, patience: float = _PATIENCE) -> None:
        """Ask it to write a checkpoint and leave; kill it where it does not, or where the user interrupts again."""
        self._close()
        deadline = time.monotonic() + patience
        while self.code is None and time.monotonic() < deadline and not comfy.model_management.processing_interrupted():
            time.sleep(_POLL)
        if self.code is None:
            self.kill()

    def _close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def kill(self) -> None:
        """With its data workers."""
        if hasattr(os, "killpg"):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    def failure(self, name: str) -> TrainingError:
        """What it ended with, in words; it did not end well."""
        lines = self.lines() or [f"code {self.code}"]
        goes_on = f"queue again with the name {name}, and it goes on from its last checkpoint"
        said = next((number for number in reversed(range(len(lines))) if lines[number].startswith(_ERROR)), None)
        if said is not None:
            return ToldError("\n".join(lines[said:]).removeprefix(_ERROR), goes_on)
        ends_with = "\n".join(lines[-_LAST:])
        found = _MISSING.search(ends_with)
        if found or _OLDER.search("\n".join(lines)):
            lacks = shown(found[1] or found[2]) if found else "the trainer of this pack"
            return TrainingError(
                f"the trainer cannot start: ComfyUI's Python lacks {lacks}, or has another version of it",
                expected="the program ipadapter with all it needs",
                action=f"in {ROOT} run {shlex.quote(sys.executable)} -m pip install -e '.[train]', then queue again",
            )
        if _OUT_OF_MEMORY.search(ends_with) or self.code == _KILLED:
            return TrainingError(
                f"a training that ran out of memory or was killed ({shown(lines[-1])})",
                expected="a GPU, and a machine, with room for it",
                action=f"lower the resolution, or batch_size in {self.log.with_name(SUGGESTED)}; then {goes_on}",
            )
        return TrainingError(
            f"a trainer that ended with code {self.code} ({shown(lines[-1])})",
            expected="a training that comes to its end",
            action=f"look at {self.log}; then {goes_on}",
        )


def _environment() -> dict[str, str]:
    own = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "TQDM_MININTERVAL": "2"}
    if comfy.model_management.cpu_mode():
        own["ACCELERATE_USE_CPU"] = "true"
    return {**os.environ, **own}


_OWN_GROUP: dict[str, Any] = (
    {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)}
    if os.name == "nt"
    else {"start_new_session": True}
)
