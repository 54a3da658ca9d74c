"""From a run folder or one of its checkpoints to the deliverable."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from ipadapter_core.file.container import read_header, read_json
from ipadapter_core.network.adapter import load_adapter

from ..config import Config
from ..config_file import read_config
from ..data.skips import SKIPPED, read_skipped
from ..metrics_log import best_so_far, read_records
from ..models.encoder_files import find_encoder
from ..models.face_network import LORA_LAYERS
from ..state import ADAPTER, BEST, BEST_STEP, CONFIG, COUNTERS, EMA, CheckpointError, check_files, find_checkpoints
from .export import ExportReport, export_adapter
from .facts import Preprocess, RunCounts, run_facts

Weights = Literal["auto", "average", "trained", "best"]


def export_checkpoint(
    path: Path, output: Path | None, *, weights: Weights = "auto", overrides: Sequence[str] = ()
) -> ExportReport:
    """Export a checkpoint's adapter.

    Args:
        path: checkpoint folder, or run folder, whose last checkpoint is taken.
        output: None writes `adapter.safetensors` into the run folder.
        weights: "average" or "trained" ones; "auto" takes the average where there is one; "best" are those of the
            whole run by `validation.best`.
        overrides: changes to the run's config, such as `encoder.model=…` where the encoder has moved.

    Raises:
        CheckpointError: no such folder, or not the weights asked for.
        ConfigError, ModelNotFoundError, UnreadableFileError: its config or encoder cannot be read.
        ExportError: as `export_adapter`.
    """
    checkpoint = find_checkpoint(path)
    run = checkpoint.parents[1]
    check_files(checkpoint, CONFIG)
    config = read_config(checkpoint / CONFIG, overrides)
    file = {"trained": checkpoint / ADAPTER, "average": checkpoint / EMA, "best": run / BEST}.get(weights)
    if file is None:
        file = checkpoint / (EMA if (checkpoint / EMA).is_file() else ADAPTER)
    if not file.is_file():
        raise CheckpointError(
            f"{file.parent} has no {file.name}",
            expected={EMA: "a run with optimizer.ema_decay", BEST: "a run with validation.every"}[file.name],
            action="export other weights: --raw takes the trained ones of the last checkpoint",
        )
    if file.parent == checkpoint:
        check_files(checkpoint, file.name)
    adapter = load_adapter(file, verify_again=True)
    facts = run_facts(
        config,
        read_preprocess_of(config) if config.adapter.reads_pictures else None,
        _counts(file, checkpoint, config),
        prediction_type=_prediction_type(config),
        written=datetime.fromtimestamp(file.stat().st_mtime, timezone.utc),
    )
    target = run / ADAPTER if output is None else output
    layers = tuple(json.loads(str(read_header(file).get("__metadata__", {}).get(LORA_LAYERS, "[]"))))
    return export_adapter(adapter, target, precision=config.export.precision, facts=facts, lora_layers=layers)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint a path means: itself, or the last one of a run.

    Raises:
        CheckpointError: neither.
    """
    if (path / COUNTERS).is_file() and (path / ADAPTER).is_file():
        return path.resolve()
    checkpoints = find_checkpoints(path)
    if not checkpoints:
        raise CheckpointError(
            f"{path} is no checkpoint and has none",
            expected=f"a run folder with checkpoints/step-…, or one of these with {ADAPTER}",
            action="give the train.output of a run; for files of other trainers use `ipadapter convert`",
        )
    return checkpoints[-1].resolve()


def read_preprocess_of(config: Config) -> Preprocess:
    """How a run prepares references, without its encoder's weights.

    Raises:
        ModelNotFoundError, UnreadableFileError, MismatchError: as `find_encoder`.
    """
    files = find_encoder(config.encoder.model, "encoder.model")
    return Preprocess.of(files.spec, files.pixel_format(), config.encoder.crop)


def _counts(file: Path, checkpoint: Path, config: Config) -> RunCounts:
    run = checkpoint.parents[1]
    stated: Mapping[str, int] = json.loads((checkpoint / COUNTERS).read_text(encoding="utf-8"))
    step, samples = stated["step"], stated["samples"]
    if file.name == BEST:
        best = _best_step(file, config)
        if best is not None:
            step, samples = best, samples * best // step  # every step sees as many
    return RunCounts(
        step=step,
        samples=samples,
        uses_ema=file.name == EMA or (file.name == BEST and config.optimizer.ema_decay is not None),
        pairs=stated.get("pairs"),
        skipped=len(read_skipped(run / SKIPPED)),
    )


def _best_step(file: Path, config: Config) -> int | None:
    """As the file says; those of earlier versions do not, and were the best by the run's rule."""
    stated = read_header(file).get("__metadata__", {}).get(BEST_STEP)
    if stated is not None:
        return int(str(stated))
    best = best_so_far(read_records(file.parent), config.validation.best)
    return None if best is None else best.step


def _prediction_type(config: Config) -> str | None:
    """As configured, or as the base model's folder says; None where only loading the model would tell."""
    if config.base.prediction_type != "auto":
        return config.base.prediction_type
    stated = _schedule(config.base.model)
    described = stated if config.base.config is None else _schedule(config.base.config)
    if any(str(each.get("_class_name", "")).startswith("Flow") for each in (stated, described)):
        return "flow"
    found = (
        stated.get("prediction_type", "epsilon") if stated else None
    )  # a single file may say otherwise than its config
    return found if isinstance(found, str) else None


def _schedule(model: str) -> dict[str, object]:
    """Settings of a folder's scheduler; empty where none are found."""
    path = Path(model) / "scheduler" / "scheduler_config.json"
    stated = read_json(path, "scheduler config") if path.is_file() else None
    return stated if isinstance(stated, dict) else {}
