"""How far a run is: a bar on a terminal, a line every minute where there is none, such as in a job's log."""

import logging
import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from tqdm import tqdm

from .words import duration

logger = logging.getLogger(__name__)

_SECONDS = 60.0


def open_progress(total: int, done: int, *, shows: bool) -> Any:
    """A tqdm bar, or what has the part of its interface that training uses."""
    if shows and not sys.stderr.isatty():
        return Lines(total, done)
    return tqdm(total=total, initial=done, unit="step", disable=not shows)


@dataclass
class Lines:
    """A line at the first step, every minute and at the end.

    Attributes:
        done: steps, earlier sessions included.
        seconds: between two lines.
    """

    total: int
    done: int
    seconds: float = _SECONDS
    _loss: str = ""
    _began: tuple[int, float] | None = None  # once the first step, which warms up, is over
    _said: float = field(default=-1e9)
    _said_at: int = -1

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._began is not None and self.done != self._said_at:
            self._say(time.monotonic())

    def update(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self._said >= self.seconds:
            self._say(now)
        if self._began is None:
            self._began = self.done, now

    def set_postfix(self, *, loss: str) -> None:
        self._loss = f", loss {loss}"

    def _say(self, now: float) -> None:
        left = ""
        if self._began is not None and self.done > self._began[0] and self.done < self.total:
            pace = (now - self._began[1]) / (self.done - self._began[0])
            left = f", {duration(pace * (self.total - self.done))} left"
        logger.info("step %s of %s%s%s", f"{self.done:,}", f"{self.total:,}", self._loss, left)
        self._said, self._said_at = now, self.done
