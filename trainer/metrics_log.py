"""`metrics.jsonl`: every number of a run, one JSON object a line, and the same numbers to TensorBoard and the like."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ipadapter_core.file.container import write_aside

from .words import visible

Record = dict[str, Any]
Kind = Literal["train", "validation", "samples", "eval", "note"]
Rule = Literal["loss", "gap", "clip_i", "dino"]
Track = Callable[[dict[str, float], int], object]
METRICS_FILE = "metrics.jsonl"


def untracked(values: dict[str, float], step: int) -> None:
    """The tracker of a run that has none."""


class MetricsLog:
    """Appends to a run's metrics.jsonl; a line is on disk when `write` returns.

    A record's step is the number of optimiser steps done. What a killed run wrote after the checkpoint it is resumed
    from is dropped, so that no step occurs twice.

    Args:
        run: folder of the run.
        start_step: steps done before this process.
        writes: false on every process but the main one, where nothing is written.
        track: gets each record's numbers by flat names, and the step: `accelerator.log`.
    """

    def __init__(self, run: Path, *, start_step: int = 0, writes: bool = True, track: Track = untracked) -> None:
        self._path = run / METRICS_FILE
        self._writes = writes
        self._track = track
        self.records: list[Record] = []
        if writes:
            run.mkdir(parents=True, exist_ok=True)
            self.records = [record for record in read_records(run) if record["step"] <= start_step]
            self._rewrite()

    def write(self, step: int, kind: Kind, values: Mapping[str, object]) -> None:
        """Record values (numbers, texts, or mappings of them) of a step; a number that is not finite becomes null."""
        if not self._writes:
            return
        record = {"step": step, "kind": kind, "time": round(time.time(), 3), **_plain(values)}
        self.records.append(record)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._track(dict(_flat(values, f"{kind}/")), step)

    def _rewrite(self) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        write_aside(self._path, lambda part: part.write_text(lines, encoding="utf-8"))


def read_records(run: Path) -> list[Record]:
    """The records of a run in their order; a line that a kill cut off is left out."""
    path = run / METRICS_FILE
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


@dataclass(frozen=True)
class Best:
    """The step a run was best at, and what it reached there."""

    step: int
    value: float


def best_so_far(records: Iterable[Record], rule: Rule) -> Best | None:
    """Lowest true validation loss, or highest of another measure; the earlier step of equals; None if unmeasured."""
    sign = -1 if rule == "loss" else 1
    measured = [(record["step"], value) for record in records if (value := _measure(record, rule)) is not None]
    if not measured:
        return None
    return Best(*max(measured, key=lambda pair: sign * pair[1]))  # the first of equals


def at_full_strength(record: Record) -> Mapping[str, Any]:
    """Image metrics of a record at the largest strength that was drawn."""
    strengths = record.get("strengths") or {}
    return strengths[max(strengths, key=float)] if strengths else {}


def _measure(record: Record, rule: Rule) -> float | None:
    if rule in ("clip_i", "dino"):
        return at_full_strength(record).get(rule) if record["kind"] == "samples" else None
    name = {"loss": "true", "gap": "gap_shuffled"}[rule]
    return record.get(name) if record["kind"] == "validation" else None


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    return {str(name): _plain_value(value) for name, value in values.items()}


def _plain_value(value: object) -> object:
    if isinstance(value, Mapping):
        return _plain(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(values: Mapping[str, object], prefix: str) -> Iterable[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield visible(f"{prefix}{name}"), float(value)
