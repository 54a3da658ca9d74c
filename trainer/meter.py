"""`Meter`: losses and speed between two log lines, read off the device where a line is due and nowhere else."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from .batch import Batch
from .stop import StopRequest

_SHORTEST = 1e-9  # seconds


@dataclass(frozen=True)
class Reading:
    """Of the steps since the reading before.

    Attributes:
        loss: mean over them, and over all processes.
        steps_per_second: of training alone.
        data_wait: share of that time that this process waited for pictures.
        peak_bytes: most that this process has held on its device so far; None where the device does not say.
    """

    loss: float
    steps_per_second: float
    data_wait: float
    peak_bytes: int | None


class Meter:
    """Losses are summed on the device, which works behind the host: time is taken only after waiting for it."""

    def __init__(self, accelerator: Accelerator, clock: Callable[[], float] | None = None) -> None:
        self.losses: list[float] = []
        self.is_told_to_stop = False
        self._accelerator = accelerator
        self._clock = clock or time.perf_counter
        self._since = self._clock()
        self._seconds = self._waited = 0.0
        self._total: Tensor | None = None
        self._forwards = self._steps = 0

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same endless batches; the time they are waited for is counted."""
        while True:
            asked = self._clock()
            batch = next(batches)
            self._waited += self._clock() - asked
            yield batch

    def add(self, losses: Sequence[Tensor]) -> None:
        """The losses of one optimiser step."""
        for loss in losses:
            self._total = loss if self._total is None else self._total + loss
        self._forwards += len(losses)
        self._steps += 1

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Inside, time is no training time: validation, pictures, checkpoints."""
        wait_for(self._accelerator.device)
        self._count_time()
        yield
        self._since = self._clock()

    def may_stop_now(self, stop: StopRequest) -> bool:
        """Alone a process may leave at any step; several have to agree, which they do when a number is read."""
        return stop.is_asked and self._accelerator.num_processes == 1

    def read(self, stop: StopRequest) -> Reading:
        """What there is to say since the last reading; afterwards known: whether any process was told to stop."""
        assert self._total is not None
        numbers = torch.stack((self._total / self._forwards, torch.full_like(self._total, float(stop.is_asked))))
        loss, stops = self._accelerator.reduce(numbers, reduction="mean").tolist()
        self._count_time()
        seconds = max(self._seconds, _SHORTEST)
        self.is_told_to_stop = stops > 0
        self.losses.append(loss)
        reading = Reading(
            loss, self._steps / seconds, min(1.0, self._waited / seconds), peak_bytes(self._accelerator.device)
        )
        self._total, self._forwards, self._steps = None, 0, 0
        self._seconds = self._waited = 0.0
        return reading

    def _count_time(self) -> None:
        now = self._clock()
        self._seconds, self._since = self._seconds + now - self._since, now


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type != "cpu":
        _module(device).synchronize()


def peak_bytes(device: torch.device) -> int | None:
    """The most this process has held on the device; None where it does not say."""
    measure = getattr(_module(device), "max_memory_allocated", None)
    return None if device.type == "cpu" or measure is None else int(measure(device))


def _module(device: torch.device) -> Any:
    return getattr(torch, device.type)
