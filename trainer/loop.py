"""The training loop, top to bottom: one file, one loop, no callbacks."""

import logging
import math
import time
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from tqdm import tqdm

from .config import Config
from .config_file import write_config
from .resume.occupancy import occupied
from .run import Run, open_run
from .state import CONFIG, check_files, check_same_run, clean_up, diverged, find_checkpoints
from .stop import StopRequest, stop_on_signals
from .watch.observe import open_observer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a training run ended.

    Attributes:
        step, samples: optimiser steps done and samples seen by all processes, earlier sessions of the run included.
        losses: mean loss of each logging interval of this session.
        is_finished: false if a signal ended it before `train.steps`.
    """

    step: int
    samples: int
    losses: tuple[float, ...]
    is_finished: bool


def train(config: Config) -> Outcome:
    """Train as the config says, going on from the run folder's last checkpoint if there is one.

    Every process of a launch calls it. Raises IPAdapterError for whatever the user can mend: paths, data, settings, a
    diverged loss.
    """
    with occupied(config.run):
        return _train(config)


def _train(config: Config) -> Outcome:
    run = open_run(config)
    accelerator, adapter, state, counters = run.accelerator, run.adapter, run.state, run.state.counters
    _resume(run)
    observer = open_observer(run)
    run.release_encoders()
    observer.at_step(counters.step)
    meter = _Meter(accelerator)
    bar = tqdm(
        total=config.train.steps, initial=counters.step, unit="step", disable=not accelerator.is_local_main_process
    )
    with bar, stop_on_signals(speaks=accelerator.is_main_process) as stop:
        for batch in run.batches(counters.step) if counters.step < config.train.steps else ():
            run.skips.add(batch)
            with accelerator.accumulate(adapter):
                loss = run.objective.loss(adapter, batch.to(accelerator.device))
                accelerator.backward(loss)
                if accelerator.sync_gradients and config.optimizer.clip_norm is not None:
                    accelerator.clip_grad_norm_(run.network.trained_parameters(), config.optimizer.clip_norm)
                run.optimizer.step()
                run.optimizer.zero_grad(set_to_none=True)
            meter.add(loss.detach())
            if not accelerator.sync_gradients:
                continue
            run.schedule.step()
            if run.ema is not None:
                run.ema.step(run.network.trained_parameters())
            counters.step += 1
            counters.samples += run.samples_per_step
            bar.update()
            is_last = counters.step >= config.train.steps
            if is_last or counters.step % config.train.log_every == 0 or meter.may_stop_now(stop):
                meter.read(stop)
                _check_finite(meter.loss, config, counters.step)
                bar.set_postfix(loss=f"{meter.loss:.4f}")
                learning_rate = run.schedule.get_last_lr()[0]
                images_per_second = run.samples_per_step * meter.steps_per_second
                observer.log_training(counters.step, meter.loss, learning_rate, images_per_second)
            observer.at_step(counters.step, is_last=is_last)
            if is_last or counters.step % config.checkpoint.every == 0 or meter.is_told_to_stop:
                state.save()
            if is_last or meter.is_told_to_stop:
                break
            meter.leave_out_pauses()
    observer.close()
    return Outcome(counters.step, counters.samples, tuple(meter.losses), counters.step >= config.train.steps)


def _resume(run: Run) -> None:
    """Go on from the last checkpoint, if there is one of this very run."""
    identity = run.state.identity()  # of a new one too: parts of the models are released afterwards
    if run.accelerator.is_main_process:
        clean_up(run.config.run)
    run.accelerator.wait_for_everyone()
    for checkpoint in find_checkpoints(run.config.run)[-1:]:
        check_files(checkpoint)
        check_same_run(identity, run.config, checkpoint)
        run.state.restore(checkpoint)
        logger.info("going on from %s", checkpoint)
    if run.accelerator.is_main_process:
        write_config(run.config, run.config.run / CONFIG)


@dataclass
class _Meter:
    """Losses summed on the device; `read` is the only place where a number leaves it."""

    accelerator: Accelerator
    loss: float = math.nan
    losses: list[float] = field(default_factory=list)
    steps_per_second: float = 0.0
    is_told_to_stop: bool = False
    _total: torch.Tensor | None = None
    _count: int = 0
    _seconds: float = 0.0
    _since: float = field(default_factory=time.perf_counter)

    def add(self, loss: torch.Tensor) -> None:
        self._total = loss if self._total is None else self._total + loss
        self._count += 1
        now = time.perf_counter()
        self._seconds, self._since = self._seconds + now - self._since, now

    def leave_out_pauses(self) -> None:
        """Time since the step, spent on validation, pictures and checkpoints, is no training time."""
        self._since = time.perf_counter()

    def may_stop_now(self, stop: StopRequest) -> bool:
        """Alone a process may leave at any step; several have to agree, which they do when a number is read."""
        return stop.is_asked and self.accelerator.num_processes == 1

    def read(self, stop: StopRequest) -> None:
        """Mean loss and speed since the last reading, and whether any process was told to stop."""
        assert self._total is not None
        numbers = torch.stack((self._total / self._count, torch.full_like(self._total, float(stop.is_asked))))
        self.loss, stops = self.accelerator.reduce(numbers, reduction="mean").tolist()
        steps = self._count / self.accelerator.gradient_accumulation_steps
        self.steps_per_second = steps / max(self._seconds, 1e-9)
        self.is_told_to_stop = stops > 0
        self.losses.append(self.loss)
        self._total, self._count, self._seconds = None, 0, 0.0


def _check_finite(loss: float, config: Config, step: int) -> None:
    if not math.isfinite(loss):
        raise diverged(config.run, f"a loss of {loss} at step {step}")
