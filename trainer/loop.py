"""The training loop, top to bottom: one file, one loop, no callbacks."""

import logging
import math
from dataclasses import dataclass

from .config import Config
from .config_file import write_config
from .meter import Meter
from .progress import open_progress
from .resume.occupancy import occupied
from .run import Run, open_run
from .state import CONFIG, clean_up, diverged, find_checkpoints
from .stop import stop_on_signals
from .storage import GOES_ON, storage
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
    with storage("the run", config.run, goes_on=GOES_ON), occupied(config.run):
        return _train(config)


def _train(config: Config) -> Outcome:
    run = open_run(config, lacking="fill")
    accelerator, state, counters = run.accelerator, run.state, run.state.counters
    _resume(run)
    observer = open_observer(run)
    run.release_encoders()
    observer.at_step(counters.step)
    meter = Meter(accelerator)
    batches = meter.timed(run.batches(counters.step) if counters.step < config.train.steps else iter(()))
    bar = open_progress(config.train.steps, counters.step, shows=accelerator.is_local_main_process)
    with bar, stop_on_signals(speaks=accelerator.is_main_process) as stop:
        while counters.step < config.train.steps and not meter.is_told_to_stop:
            meter.add(run.step(batches))
            bar.update()
            is_last = counters.step >= config.train.steps
            if is_last or counters.step % config.train.log_every == 0 or meter.may_stop_now(stop):
                reading = meter.read(stop)
                if not math.isfinite(reading.loss):
                    raise diverged(config.run, f"a loss of {reading.loss} at step {counters.step}")
                bar.set_postfix(loss=f"{reading.loss:.4f}")
                observer.log_training(counters.step, reading, run.schedule.get_last_lr()[0])
            saves = is_last or counters.step % config.checkpoint.every == 0 or meter.is_told_to_stop
            if saves or observer.may_look(counters.step, is_last=is_last):
                with meter.pause():
                    observer.at_step(counters.step, is_last=is_last)
                    if saves:
                        state.save()
    observer.close()
    return Outcome(counters.step, counters.samples, tuple(meter.losses), counters.step >= config.train.steps)


def _resume(run: Run) -> None:
    """Go on from the last checkpoint, if there is one; that it is of this very run was checked as the run was opened."""
    if run.accelerator.is_main_process:
        clean_up(run.config.run)
    run.accelerator.wait_for_everyone()
    for checkpoint in find_checkpoints(run.config.run)[-1:]:
        run.state.restore(checkpoint)
        logger.info("going on from %s", checkpoint)
    if run.accelerator.is_main_process:
        write_config(run.config, run.config.run / CONFIG)
