"""Sends mutated inputs to an entry point, each in a child process that may hang, swell or die, and counts what comes.

An entry takes what a case made and returns, or raises `IPAdapterError`: all else is a failure. Case `number` of a seed is
always the same, so a failure is tried again with `--case NUMBER`.
"""

import multiprocessing
import os
import random
import resource
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from ipadapter_core.errors import IPAdapterError

Make = Callable[[random.Random, Path], str]
"""Writes one mutated input into a folder of its own and returns the kind of its mutation."""
Entry = Callable[[Path], object]
"""What a user does with that folder."""
SECONDS, MEMORY = 20, 2 << 30
_SWOLLEN = 77
_FORK = multiprocessing.get_context("fork")


@dataclass
class Tally:
    """Outcomes: "read", "message", or a failure, which names its cases."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[int]] = field(default_factory=dict)

    def add(self, number: int, outcome: str) -> None:
        self.counts[outcome if outcome in ("read", "message") else "failed"] += 1
        if outcome not in ("read", "message"):
            self.failures.setdefault(outcome, []).append(number)

    def __str__(self) -> str:
        lines = [", ".join(f"{count} {outcome}" for outcome, count in sorted(self.counts.items()))]
        lines += [f"{len(cases)} x {outcome} (cases {cases[:5]})" for outcome, cases in self.failures.items()]
        return "\n".join(lines)


def fuzz(entry: Entry, make: Make, numbers: range, seed: int, *, seconds: int = SECONDS, memory: int = MEMORY) -> Tally:
    """Run cases; a child that dies, hangs or swells ends with its case, and another goes on after it."""
    tally, left = Tally(), list(numbers)
    while left:
        receiver, sender = _FORK.Pipe(duplex=False)
        child = _FORK.Process(target=_work, args=(sender, entry, make, left, seed, seconds, memory), daemon=True)
        child.start()
        sender.close()
        done = 0
        for number, outcome in _reports(receiver, seconds):
            tally.add(number, outcome)
            done += 1
        child.kill()
        child.join()
        if done < len(left) and child.exitcode != _SWOLLEN:
            tally.add(left[done], f"ended the process (exit code {child.exitcode})")
            done += 1
        left = left[done:]
    return tally


def _reports(receiver: Connection, seconds: int) -> Iterator[tuple[int, str]]:
    try:
        while receiver.poll(3 * seconds):  # the child's own alarm comes first, where Python can take it
            yield receiver.recv()
    except EOFError:
        return


def _work(
    sender: Connection, entry: Entry, make: Make, numbers: list[int], seed: int, seconds: int, memory: int
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGALRM, _hang)
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            kind = make(random.Random(f"{seed}/{number}"), place)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            outcome = _outcome(entry, place, seconds)
            swollen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
            if swollen > memory:
                outcome = f"took {swollen >> 20} MB"
        if outcome not in ("read", "message"):
            outcome = f"{kind}: {outcome}"
        sender.send((number, outcome))
        if swollen > memory:  # the peak never falls: the next cases need a process of their own
            os._exit(_SWOLLEN)
    sender.close()


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
