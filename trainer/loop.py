"""The training loop, top to bottom: one file, one loop, no callbacks."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.file.container import read_tensors

from .config import Config
from .config_file import write_config
from .meter import Meter
from .progress import open_progress
from .run import open_run
from .state import ADAPTER, CONFIG, CheckpointError, check_same_run, clean_up, find_checkpoints
from .stop import stop_on_signals
from .watch.observe import open_observer

logger = logging.getLogger(__name__)


class DivergedError(IPAdapterError):
    """Losses or weights are no numbers any more."""


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
    for checkpoint in find_checkpoints(config.run)[-1:]:
        check_same_run(config, checkpoint)
    run = open_run(config, fills_cache=True)
    accelerator, state, counters = run.accelerator, run.state, run.state.counters
    if accelerator.is_main_process:
        clean_up(config.run)
    accelerator.wait_for_everyone()
    for checkpoint in find_checkpoints(config.run)[-1:]:
        state.restore(checkpoint)
        logger.info("going on from %s", checkpoint)
    if accelerator.is_main_process:
        _make_folder(config.run)
        write_config(config, config.run / CONFIG)
    observer = open_observer(run)
    run.release_encoders()
    observer.at_step(counters.step)
    meter = Meter(accelerator)
    batches = meter.timed(run.batches(counters.step) if counters.step < config.train.steps else iter(()))
    bar = open_progress(config.train.steps, counters.step, shows=accelerator.is_local_main_process)
    with bar, stop_on_signals() as stop:
        while counters.step < config.train.steps and not meter.is_told_to_stop:
            meter.add(run.step(batches))
            bar.update()
            is_last = counters.step >= config.train.steps
            if is_last or counters.step % config.train.log_every == 0 or meter.may_stop_now(stop):
                reading = meter.read(stop)
                if not math.isfinite(reading.loss):
                    raise _diverged(f"a loss of {reading.loss}", config, counters.step)
                bar.set_postfix(loss=f"{reading.loss:.4f}")
                observer.log_training(counters.step, reading, run.schedule.get_last_lr()[0])
            saves = is_last or counters.step % config.checkpoint.every == 0 or meter.is_told_to_stop
            if saves or observer.may_look(counters.step, is_last=is_last):
                with meter.pause():
                    if saves and not run.has_finite_weights():
                        raise _diverged("weights that are no numbers", config, counters.step)
                    observer.at_step(counters.step, is_last=is_last)
                    if saves:
                        state.save()
    observer.close()
    return Outcome(counters.step, counters.samples, tuple(meter.losses), counters.step >= config.train.steps)


def _diverged(found: str, config: Config, step: int) -> DivergedError:
    good = next((folder for folder in reversed(find_checkpoints(config.run)) if _is_good(folder)), None)
    return DivergedError(
        f"{found} at step {step}",
        expected="finite numbers",
        action="lower optimizer.learning_rate, or set base.precision to bf16; "
        + ("no checkpoint is good" if good is None else f"the last good checkpoint is {good}"),
    )


def _is_good(checkpoint: Path) -> bool:
    tensors = read_tensors(checkpoint / ADAPTER).tensors.values()
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _make_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"train.output = {str(run)!r}, which cannot be made a folder ({error.strerror})",
            expected="a folder, or a place where one can be made",
            action="choose another train.output",
        ) from error
