"""`Observer`: what a person watches of a run: numbers, validation losses, sample pictures, the best weights, the report."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from tqdm import tqdm

from ipadapter_core.file.container import write_aside, write_safetensors
from ipadapter_core.file.seal import sealed

from ..config import Config
from ..data.loader import held_out_batches
from ..meter import Reading
from ..metrics_log import MetricsLog, best_so_far, untracked
from ..run import Run
from ..sharding import SHARDED
from ..state import BEST, BEST_STEP, adapter_weights
from .contact_sheet import save_grid
from .metrics import Judge, load_judge
from .references import open_drawing
from .report import write_report
from .sampling import Reference, Sampler, Share, sample_grid
from .validation import ValidationGrid, build_grid, validate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Observer:
    """Looks at a run at the steps the config names; changes nothing of it, its random numbers included.

    Attributes:
        grid: None if nothing is validated.
        sampler, references: None and empty if nothing is drawn.
        judge: None if no evaluation encoder is configured.
    """

    run: Run
    log: MetricsLog
    grid: ValidationGrid | None
    sampler: Sampler | None
    references: tuple[Reference, ...]
    judge: Judge | None

    def log_training(self, step: int, reading: Reading, learning_rate: float) -> None:
        values: dict[str, float] = {
            "loss": reading.loss,
            "learning_rate": learning_rate,
            "images_per_second": self.run.samples_per_step * reading.steps_per_second,
            "data_wait": reading.data_wait,
        }
        if reading.peak_bytes is not None:
            values["peak_bytes"] = reading.peak_bytes
        self.log.write(step, "train", values)

    def may_look(self, step: int, *, is_last: bool) -> bool:
        """Whether `at_step` may have something to do."""
        validation = self.run.config.validation
        return any(_is_turn(step, every, is_last) for every in (validation.every, validation.sample_every))

    def at_step(self, step: int, *, is_last: bool = False) -> None:
        """Validate and draw what is due; what a resumed run's earlier process did at this step is left out."""
        validation = self.run.config.validation
        validates = self.grid is not None and self._is_due("validation", step, validation.every, is_last)
        draws = self.sampler is not None and self._is_due("samples", step, validation.sample_every, is_last)
        if not (validates or draws):
            return
        with self.run.averaged():
            if validates:
                self._validate(step)
            if draws:
                self._draw(step)
            self._keep_best(step)
        self.report(is_live=True)

    def report(self, *, is_live: bool = False) -> None:
        if self.run.accelerator.is_main_process:
            write_report(self.run.config.run, is_live=is_live)

    def close(self) -> None:
        """End trackers; call it when the loop is over, finished or stopped."""
        self.report()
        self.run.accelerator.end_training()

    def _is_due(self, kind: str, step: int, every: int | None, is_last: bool) -> bool:
        if not _is_turn(step, every, is_last):
            return False
        # the log is the main process's, and every process has to come to the same answer
        done = any(record["kind"] == kind and record["step"] == step for record in self.log.records)
        return not self._any_process(done)

    def _any_process(self, holds: bool) -> bool:
        accelerator = self.run.accelerator
        return bool(accelerator.reduce(torch.tensor(float(holds), device=accelerator.device)).item())

    def _validate(self, step: int) -> None:
        assert self.grid is not None
        accelerator = self.run.accelerator
        losses = validate(
            self.grid,
            self.run.adapter,
            self.run.objective,
            batch_size=self.run.config.train.batch_size,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            total=partial(accelerator.reduce, reduction="sum"),
        )
        self.log.write(step, "validation", vars(losses))

    def _draw(self, step: int) -> None:
        """Shared out over the processes, lest all wait for one; where each has only a part of the weights, all draw all."""
        assert self.sampler is not None
        accelerator = self.run.accelerator
        is_main, has_part = accelerator.is_main_process, accelerator.distributed_type in SHARDED
        adapter = self.run.adapter if has_part else self.run.network
        share = Share() if has_part else Share(accelerator.process_index, accelerator.num_processes, gather_object)
        total = -(-self.sampler.settings.total_steps(len(self.references)) // share.size)
        with tqdm(total=total, desc=f"samples of step {step}", unit=" steps", leave=False, disable=not is_main) as bar:
            grid = sample_grid(
                self.sampler, adapter, self.run.objective.no_image, self.references, bar.update, share=share
            )
        if is_main:
            sheet, *_ = save_grid(grid, self.run.config.run / "samples" / f"step-{step:08d}")
            _track_sheet(self.run.accelerator, sheet, step)
            rated = {} if self.judge is None else self.judge.rate(grid)
            self.log.write(step, "samples", {"guidance": self.sampler.guidance, **rated})

    def _keep_best(self, step: int) -> None:
        best = best_so_far(self.log.records, self.run.config.validation.best)
        if not self._any_process(best is not None and best.step == step):
            return
        weights = adapter_weights(self.run.accelerator, self.run.adapter)
        if self.run.accelerator.is_main_process:
            metadata = self.run.network.metadata | {BEST_STEP: str(step)}
            write_aside(
                self.run.config.run / BEST, lambda path: write_safetensors(path, weights, sealed(weights, metadata))
            )


def open_observer(run: Run) -> Observer:
    """Encode what is watched, once. The encoders a step does not need are free to leave the device afterwards."""
    config, accelerator = run.config, run.accelerator
    validation = config.validation
    grid = sampler = judge = None
    references: tuple[Reference, ...] = ()
    if validation.every is not None:
        batches = held_out_batches(config, run.held_out, run.geometry, run.stores)
        grid = build_grid(batches, run.objective, timesteps=validation.timesteps, seed=config.train.seed)
    if validation.sample_every is not None:
        sampler, drawn = open_drawing(config, run.held_out, run.base, run.reader)
        references = tuple(drawn)
        judge = load_judge(validation, run.reader, accelerator.device)
    log = MetricsLog(
        config.run,
        start_step=run.state.counters.step,
        writes=accelerator.is_main_process,
        track=_track(accelerator, config),
    )
    return Observer(run, log, grid, sampler, references, judge)


def _is_turn(step: int, every: int | None, is_last: bool) -> bool:
    return every is not None and (step % every == 0 or is_last)


def _track(accelerator: Accelerator, config: Config) -> Callable[[dict[str, float], int], object]:
    if not config.train.trackers:
        return untracked
    accelerator.init_trackers(config.run.resolve().name)
    return lambda values, step: accelerator.log(values, step=step)


def _track_sheet(accelerator: Accelerator, sheet: Path, step: int) -> None:
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB"))[None]  # (1, H, W, 3)
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({"samples": pixels}, step=step, **layout)
