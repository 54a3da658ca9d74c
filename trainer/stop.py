"""Leaving in good order when a signal asks for it."""

import _thread
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

logger = logging.getLogger(__name__)


@dataclass
class StopRequest:
    """Whether somebody asked to leave."""

    is_asked: bool = False


def interrupt_with_input() -> None:
    """Be interrupted, as by Ctrl-C, when standard input ends: the program that holds its other end asks, or is gone.

    On every system, also where a process group cannot be sent Ctrl-C.
    """
    number = sys.stdin.fileno()

    def wait() -> None:
        while os.read(number, 1):  # not through sys.stdin, whose lock the interpreter would wait for as it ends
            continue
        _thread.interrupt_main()

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def stop_on_signals(*, speaks: bool) -> Iterator[StopRequest]:
    """Inside, SIGTERM and the first Ctrl-C are a request; a second Ctrl-C interrupts at once.

    Args:
        speaks: say so. Ctrl-C goes to all processes of a terminal, and one of them is enough.
    """
    stop, owner = StopRequest(), os.getpid()

    def ask(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a data worker, which has copied this handler: it ends when its owner does
            return
        if stop.is_asked:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        stop.is_asked = True
        if speaks:
            logger.warning("asked to stop: writing a checkpoint first")

    before: dict[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
