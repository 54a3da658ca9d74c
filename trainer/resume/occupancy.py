"""One trainer in a run folder at a time: a locked file, which the operating system unlocks when its process dies."""

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from filelock import FileLock, Timeout

from ..state import CheckpointError

LOCK = ".trainer.lock"
OWNER = ".trainer.json"
_PATIENCE = 15.0  # seconds for which the data workers of a trainer that was killed may hold its files
_POLL = 0.2  # seconds


class OccupiedError(CheckpointError):
    """Another trainer works in the same run folder."""


@dataclass(frozen=True)
class Owner:
    """Which trainer holds a folder."""

    host: str
    process: int

    @classmethod
    def here(cls) -> "Owner":
        return cls(socket.gethostname(), os.getpid())

    @property
    def is_dead(self) -> bool:
        """Known to have ended; of another machine, and on Windows, nobody here can tell."""
        if self.host != socket.gethostname() or os.name == "nt":
            return False
        try:
            os.kill(self.process, 0)  # only asks
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return False


@contextmanager
def occupied(run: Path) -> Iterator[None]:
    """Hold a run folder, making it if need be. Every process of a launch calls it, and the main one holds it for all.

    Raises:
        OccupiedError: another trainer, which lives, holds it.
        CheckpointError: nothing can be written there.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as the Accelerator, which comes later, would
    lock, is_free, is_new = None, [True], not run.exists()
    try:
        lock = _take(run) if state.is_main_process else None
    except CheckpointError:
        is_free = [False]
        raise
    finally:
        if state.num_processes > 1:
            broadcast_object_list(is_free)
    if not is_free[0]:
        sys.exit(1)  # the main process says why
    try:
        yield
    finally:
        if lock is not None:
            with suppress(OSError):  # both while it is held
                (run / OWNER).unlink()
                (run / LOCK).unlink()
            lock.release()
            if is_new:
                with suppress(OSError):  # that it is empty: what was wrong was found at once
                    run.rmdir()


def _take(run: Path) -> FileLock:
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = _locked(run)
        (run / OWNER).write_text(json.dumps(asdict(Owner.here())), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"train.output = {str(run)!r}, in which nothing can be written ({error.strerror or error})",
            expected="a folder, or a place where one can be made",
            action="choose another train.output",
        ) from error
    return lock


def _locked(run: Path) -> FileLock:
    deadline = time.monotonic() + _PATIENCE
    while True:
        lock = FileLock(run / LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            owner = _owner(run)
            if owner is None or not owner.is_dead:
                raise _occupied(run, owner) from None
            if time.monotonic() > deadline and _owner(run) == owner:
                (run / LOCK).unlink(missing_ok=True)  # of a file system on which a lock is a mere file
            time.sleep(_POLL)
            continue
        return lock


def _owner(run: Path) -> Owner | None:
    try:
        return Owner(**json.loads((run / OWNER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _occupied(run: Path, owner: Owner | None) -> OccupiedError:
    who = "another trainer" if owner is None else f"process {owner.process} on {owner.host}"
    return OccupiedError(
        f"{who} trains in {run}",
        expected="one trainer in a run folder",
        action=f"wait for it or stop it, or choose another train.output; if there is none, delete {run / LOCK}",
    )
