"""Sends mutated inputs to an entry point, each in a child process that may hang, swell or die, and counts what comes.

An entry takes what a case made and returns, or raises `IPAdapterError`: all else is a failure. Case `number` of a seed is
always the same, so a failure is tried again with `--case NUMBER`.
"""

import multiprocessing
import os
import random
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from ipadapter_core.errors import IPAdapterError

from . import memory

Make = Callable[[random.Random, Path], str]
"""Writes one mutated input into a folder of its own and returns the kind of its mutation."""
Entry = Callable[[Path], object]
"""What a user does with that folder."""
SECONDS = 20
MEMORY = 2 << 30
"""No case may hold more, whatever it holds for how short: the process ends with it."""
BESIDE = 48 << 20
"""What a case may take however small its file is: a pickle may have 100,000 names and entries, which are 24 MB in a new
process, and up to 34 MB in one whose heap many other tests have used."""
_SWOLLEN = 77
_FORK = multiprocessing.get_context("fork")


@dataclass
class Tally:
    """Outcomes: "read", "message", or a failure, which names its cases; the most memory that one of them took."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[int]] = field(default_factory=dict)
    grown: int = 0
    grown_most: int = -1

    def add(self, number: int, outcome: str, grown: int = 0) -> None:
        if grown > self.grown:
            self.grown, self.grown_most = grown, number
        self.counts[outcome if outcome in ("read", "message") else "failed"] += 1
        if outcome not in ("read", "message"):
            self.failures.setdefault(outcome, []).append(number)

    def __str__(self) -> str:
        lines = [", ".join(f"{count} {outcome}" for outcome, count in sorted(self.counts.items()))]
        lines[0] += f"; {self.grown / 2**20:.1f} MB at most (case {self.grown_most})"
        lines += [f"{len(cases)} x {outcome} (cases {cases[:5]})" for outcome, cases in self.failures.items()]
        return "\n".join(lines)


def fuzz(entry: Entry, make: Make, numbers: range, seed: int, *, seconds: int = SECONDS, beside: int = BESIDE) -> Tally:
    """Run cases; a child that dies, hangs or swells ends with its case, and another goes on after it.

    Args:
        seconds: that a case may take.
        beside: memory that it may take, if 1.1 times its files is less.
    """
    tally, left = Tally(), list(numbers)
    while left:
        receiver, sender = _FORK.Pipe(duplex=False)
        child = _FORK.Process(target=_work, args=(sender, entry, make, left, seed, seconds, beside), daemon=True)
        child.start()
        sender.close()
        done = 0
        for number, outcome, grown in _reports(receiver, seconds):
            tally.add(number, outcome, grown)
            done += 1
        child.kill()
        child.join()
        if done < len(left) and child.exitcode != _SWOLLEN:
            tally.add(left[done], f"ended the process (exit code {child.exitcode})")
            done += 1
        left = left[done:]
    return tally


def _reports(receiver: Connection, seconds: int) -> Iterator[tuple[int, str, int]]:
    try:
        while receiver.poll(3 * seconds):  # the child's own alarm comes first, where Python can take it
            yield receiver.recv()
    except EOFError:
        return


def _work(
    sender: Connection, entry: Entry, make: Make, numbers: list[int], seed: int, seconds: int, beside: int
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGALRM, _hang)
    for number in numbers:
        kind, outcome, grown, allowed = _case(entry, make, seed, number, seconds, beside)
        if allowed < grown <= MEMORY:  # libraries that it was the first to need are no part of it
            kind, outcome, grown, allowed = _case(entry, make, seed, number, seconds, beside)
        if grown > allowed:
            outcome = f"took more than {allowed >> 20} MB"
        if outcome not in ("read", "message"):
            outcome = f"{kind}: {outcome}"
        sender.send((number, outcome, grown))
        if grown > MEMORY:  # what is not given back would be the next case's
            os._exit(_SWOLLEN)
    sender.close()


def _case(entry: Entry, make: Make, seed: int, number: int, seconds: int, beside: int) -> tuple[str, str, int, int]:
    """Its kind, its outcome, the memory it took and the memory it may take."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        kind = make(random.Random(f"{seed}/{number}"), place)
        allowed = max(beside, int(1.1 * sum(_size(path) for path in place.rglob("*"))))
        memory.free_memory()
        before = memory.reset_peak()
        outcome = _outcome(entry, place, seconds)
        return kind, outcome, memory.peak() - before, min(allowed, MEMORY)


def _size(path: Path) -> int:
    """As it lies on the disk: holes hold nothing."""
    return path.lstat().st_blocks * 512


class HangError(BaseException):
    """No mistake a reader may catch."""


def _hang(*_: object) -> None:
    raise HangError


def _outcome(entry: Entry, place: Path, seconds: int) -> str:
    signal.alarm(seconds)
    try:
        entry(place)
    except IPAdapterError:
        return "message"
    except HangError:
        return f"more than {seconds} s"
    except BaseException as error:  # noqa: BLE001 - what else comes is what is looked for
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
    finally:
        signal.alarm(0)
    return "read"
