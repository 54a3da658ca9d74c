"""How soon an adapter is good: retrieval of each checkpoint of a run of `ipadapter train`, with the time it took."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fidelity_protocol import Protocol, retrieval
from harness import ROOT

from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import read_config
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.state import CONFIG, find_checkpoints
from support.studio import model_folders

SHIPPED = ROOT / "demo" / "assets" / "curve.json"
REFERENCES = 50


def measure_curves(runs: Sequence[Path], protocol: Protocol, encoder: Path, folder: Path) -> dict[str, Any]:
    """Points by the run folder's name: step, training seconds until there, top1, top5. Written to `SHIPPED` as well.

    Args:
        encoder: image encoder folder, which may not be where the run had it.
        folder: for the exported files.
    """
    curves = {run.name: _measure(run, protocol, encoder, folder / "curve") for run in runs}
    SHIPPED.parent.mkdir(parents=True, exist_ok=True)
    SHIPPED.write_text(f"{json.dumps(curves, indent=1)}\n", encoding="utf-8")
    return curves


def shipped_curves() -> dict[str, Any] | None:
    """What `measure_curves` wrote last, if it did."""
    return json.loads(SHIPPED.read_text(encoding="utf-8")) if SHIPPED.exists() else None


def _measure(run: Path, protocol: Protocol, encoder: Path, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    references = protocol.gallery.choose(min(REFERENCES, protocol.counts.retrieval))
    seconds = _seconds(run, read_config(run / CONFIG))
    points = []
    for checkpoint in find_checkpoints(run):
        step = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["step"]
        name = f"{run.name}-{step}"
        overrides = [f"encoder.model={encoder}"]
        export_checkpoint(checkpoint, folder / f"{name}.safetensors", overrides=overrides)
        with model_folders(folder, {"ipadapter": "."}):
            adapter = protocol.studio.load_adapter(f"{name}.safetensors")
        features = protocol.gallery.see(protocol.draw(adapter, references, name), name)
        reached = retrieval(protocol.gallery, features, references)
        points.append({"step": step, "seconds": _at(seconds, step), **reached})
    return points


def _seconds(run: Path, config: Config) -> dict[int, float]:
    """Training time until each logged step, from the speeds in the run's log: without validation and checkpoints."""
    passed, last = 0.0, 0
    seconds = {}
    samples = config.train.batch_size * config.train.accumulate
    for record in read_records(run):
        if record["kind"] == "train":
            passed += (record["step"] - last) * samples / record["images_per_second"]
            last = record["step"]
            seconds[last] = round(passed, 1)
    return seconds


def _at(seconds: dict[int, float], step: int) -> float | None:
    """At the last logged step up to `step`."""
    known = [value for logged, value in seconds.items() if logged <= step]
    return known[-1] if known else None
