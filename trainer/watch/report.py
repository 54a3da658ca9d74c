"""`report.html` of a run: one file with curves and pictures in it, for a browser without server, network or script."""

import base64
import io
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from ipadapter_core.file.container import write_aside

from ..config import Config
from ..config_file import read_config
from ..data.skips import SKIPPED, read_skipped
from ..metrics_log import Record, best_so_far, read_records
from ..words import duration, visible
from .contact_sheet import SHEET_FILE
from .plots import Curve, Plot, Point, smoothed
from .verdict import verdict_of

REPORT_FILE = "report.html"
_MOST_SHEETS, _SHEET_WIDTH, _JPEG_QUALITY = 12, 1400, 85  # together a few MB
_MOST_SKIPPED = 200
_RELOAD = 60  # seconds
_RECENT = 20  # training records that speed is measured over
_MEASURES = {
    "clip_i": (
        "CLIP-I",
        "Likeness of pictures to their references, to a CLIP that did not train. Above strength 0 is the adapter's work.",
    ),
    "clip_t": (
        "CLIP-T",
        "How well pictures fit the text, as a raw cosine; times 2.5 it is CLIPScore. Falls where the image overrules it.",
    ),
    "dino": (
        "DINO similarity",
        "Likeness of pictures to their references, to DINO: the same object. Above strength 0 is the adapter's work.",
    ),
}
_TEXT_MEASURES = ("clip_t", "clip_i", "dino")
_RULES = {"loss": "lowest validation loss", "gap": "largest gap", "clip_i": "highest CLIP-I", "dino": "highest DINO"}


@dataclass(frozen=True)
class Fact:
    """A tile of the summary."""

    name: str
    value: str
    more: str = ""


@dataclass(frozen=True)
class TextTable:
    """What the pictures of each text measure at a step: names of columns, and rows of a text and its values."""

    step: int
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[float | None]]]


@dataclass(frozen=True)
class Sheet:
    """Sample pictures of a step, as a data URI."""

    step: int
    uri: str
    width: int
    height: int


def write_report(run: Path, *, is_live: bool = False) -> Path:
    """Make `report.html` from what lies in a run folder; returns its path.

    Args:
        is_live: the run goes on: the page loads itself anew every minute.

    Raises:
        ConfigError: the folder has no readable config.toml.
    """
    config = read_config(run / "config.toml")
    records = read_records(run)
    skipped = read_skipped(run / SKIPPED)
    loader = jinja2.PackageLoader(__package__ or "trainer.watch")
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown)
    text = page.get_template("report.html.j2").render(
        name=run.resolve().name,
        reload=_RELOAD if is_live else None,
        config=config,
        settings=_sections(config.model_dump(mode="json", exclude_none=True)),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        step=_step(records),
        steps=config.train.steps,
        facts=list(_facts(config, records)),
        verdict=_verdict(config, records),
        plots=list(_plots(records)),
        texts=_texts(records),
        sheets=list(_sheets(run)),
        skipped=skipped[:_MOST_SKIPPED],
        num_skipped=len(skipped),
        reasons=Counter(one.reason for one in skipped).most_common(),
        notes=[record for record in records if record["kind"] == "note"],
    )
    path = run / REPORT_FILE
    write_aside(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def _shown(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def verdict(run: Path) -> str:
    """What the last validation of a run shows, in a sentence. Raises ConfigError as `write_report`."""
    return _verdict(read_config(run / "config.toml"), read_records(run))


def _sections(values: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Tables of a config by their TOML names, each without the tables inside it."""
    sections: dict[str, dict[str, Any]] = {}
    for name, section in values.items():
        sections[f"{prefix}{name}"] = {key: value for key, value in section.items() if not isinstance(value, Mapping)}
        inner = {key: value for key, value in section.items() if isinstance(value, Mapping)}
        sections |= _sections(inner, f"{prefix}{name}.")
    return sections


def _facts(config: Config, records: Sequence[Record]) -> Iterator[Fact]:
    training = _of_kind(records, "train")
    validation = _of_kind(records, "validation")
    if training:
        loss = smoothed(_points(training, "loss"))
        if loss:
            yield Fact("Training loss", f"{loss[-1][1]:.4f}", "smoothed")
    if validation:
        last = validation[-1]
        yield Fact("Validation loss", _number(last["true"]), f"at step {last['step']:,}")
        yield Fact(
            "Gap to a wrong reference",
            _number(last["gap_shuffled"], "+"),
            f"standard error {_number(last.get('gap_error'))}",
        )
    best = best_so_far(records, config.validation.best)
    if best is not None:
        yield Fact("Best step", f"{best.step:,}", f"{_RULES[config.validation.best]}: {best.value:.4f}")
    seconds = _seconds_per_step(training)
    if seconds is not None:
        per_image = config.train.batch_size * config.train.accumulate
        rate = training[-1].get("images_per_second") or (per_image / seconds if seconds else 0.0)
        yield Fact("Speed", f"{rate:,.1f} images/s", f"{seconds:.2f} s per step")
        left = max(0, config.train.steps - _step(records)) * seconds
        yield Fact(
            "Time left", duration(left) if left else "none", "when this was written" if left else "all steps done"
        )


def _number(value: float | None, sign: str = "") -> str:
    return "not a number" if value is None else f"{value:{sign}.4f}"


def _verdict(config: Config, records: Sequence[Record]) -> str:
    validation = _of_kind(records, "validation")
    if not validation:
        return "Not validated yet: set validation.every to see whether the reference is used."
    return verdict_of({"pictures": config.validation.images, **validation[-1]})  # earlier versions did not count them


def _plots(records: Sequence[Record]) -> Iterator[Plot]:
    training, validation = _of_kind(records, "train"), _of_kind(records, "validation")
    loss, rate = _points(training, "loss"), _points(training, "learning_rate")
    if loss:
        note = "Noisy by nature, as timesteps differ; it hardly falls even in a run that goes well."
        lines = (Curve(loss, "faint", "each interval"), Curve(smoothed(loss), "a", "smoothed"))
        yield Plot("Training loss", note, "step", lines)
    if validation:
        yield from _validation_plots(validation)
    for name, (title, note) in _MEASURES.items():
        curves = tuple(_by_strength(_of_kind(records, "samples"), name))
        if curves:
            yield Plot(title, note, "step", curves)
    if rate:
        yield Plot("Learning rate", "As the schedule set it.", "step", (Curve(rate, "a"),))


def _validation_plots(validation: Sequence[Record]) -> Iterator[Plot]:
    kinds = {"true": ("a", "its own reference"), "null": ("c", "none"), "shuffled": ("b", "another picture's")}
    yield Plot(
        "Validation loss",
        "The same pictures, timesteps and noise each time, with three references. The lines part as the adapter learns.",
        "step",
        [Curve(_points(validation, name), color, label) for name, (color, label) in kinds.items()],
    )
    measured = [record for record in validation if None not in (record["gap_shuffled"], record.get("gap_error"))]
    errors = [error for _, error in _points(measured, "gap_error")]
    yield Plot(
        "Gap to a wrong reference",
        "Loss with another picture's reference minus loss with its own. At 0 the reference is ignored; the higher, the "
        "more it is used. The band is one standard error.",
        "step",
        (Curve(_points(measured, "gap_shuffled"), "b", errors=errors),),
        zero_line=True,
    )
    first, last = validation[0], validation[-1]
    compared = (("c", first), ("a", last)) if len(validation) > 1 else (("a", last),)
    yield Plot(
        "Loss by timestep",
        "High timesteps are nearly pure noise and decide layout; low ones decide detail.",
        "timestep",
        [Curve(_by_timestep(record), color, f"step {record['step']:,}") for color, record in compared],
    )


def _by_strength(samples: Sequence[Record], name: str) -> Iterator[Curve]:
    strengths = sorted({s for record in samples for s in record.get("strengths", {})}, key=float)
    for strength in strengths:
        measured = ((r["step"], r["strengths"].get(strength, {}).get(name)) for r in samples if "strengths" in r)
        points = [(step, value) for step, value in measured if value is not None]
        if points:
            color = "c" if float(strength) == 0 else "a" if strength == strengths[-1] else "b"
            yield Curve(points, color, f"strength {strength}")


def _texts(records: Sequence[Record]) -> TextTable | None:
    """Measures of the last samples by text; None if they were drawn with one."""
    samples = [record for record in _of_kind(records, "samples") if record.get("prompts")]
    if not samples:
        return None
    last = samples[-1]
    found = {
        (name, s) for by_strength in last["prompts"].values() for s, values in by_strength.items() for name in values
    }
    columns = [
        column for column in product(_TEXT_MEASURES, sorted({s for _, s in found}, key=float)) if column in found
    ]
    rows = [
        (text, [by_strength.get(strength, {}).get(name) for name, strength in columns])
        for text, by_strength in last["prompts"].items()
    ]
    return TextTable(last["step"], [f"{_MEASURES[name][0]} at {strength}" for name, strength in columns], rows)


def _by_timestep(record: Record) -> list[Point]:
    return sorted((int(timestep), value) for timestep, value in record["per_timestep"].items() if value is not None)


def _sheets(run: Path) -> Iterator[Sheet]:
    """The newest first."""
    paths = sorted(run.glob(f"samples/step-*/{SHEET_FILE}"), key=lambda path: _step_of(path.parent), reverse=True)
    for path in paths[:_MOST_SHEETS]:
        with Image.open(path) as image:
            sheet = image.convert("RGB")
        sheet.thumbnail((_SHEET_WIDTH, 3 * _SHEET_WIDTH))
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=_JPEG_QUALITY)
        uri = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        yield Sheet(_step_of(path.parent), uri, *sheet.size)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _of_kind(records: Sequence[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def _points(records: Sequence[Record], name: str) -> list[Point]:
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]


def _step(records: Sequence[Record]) -> int:
    return max((record["step"] for record in records), default=0)


def _seconds_per_step(training: Sequence[Record]) -> float | None:
    """Median, so that pauses for validation and resumed runs do not count."""
    recent = training[-_RECENT:]
    paces = [
        (later["time"] - earlier["time"]) / (later["step"] - earlier["step"])
        for earlier, later in pairwise(recent)
        if later["step"] > earlier["step"] and later["time"] >= earlier["time"]  # clocks are put back
    ]
    return statistics.median(paces) if paces else None
