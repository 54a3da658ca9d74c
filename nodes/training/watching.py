"""What a page sees of a training: its numbers, from the run's metrics.jsonl, its curve, and the pictures it draws."""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from .chart import Point, curve
from .places import Place

_METRICS = "metrics.jsonl"
_SHEET = "sheet.png"
_LARGEST = 1024  # pixels of a sheet's longer side on a node
_LINE = 120  # characters
_MINUTE, _HOUR = 60, 3600  # seconds


@dataclass
class Numbers:
    """Of a run so far.

    Attributes:
        losses, checked: (step, loss) of training, and of the held-out pictures.
        times: (step, seconds since 1970) of training.
    """

    losses: list[Point] = field(default_factory=list)
    checked: list[Point] = field(default_factory=list)
    times: list[Point] = field(default_factory=list)

    @property
    def step(self) -> int:
        return int(self.losses[-1][0]) if self.losses else 0


class Watcher:
    """Reads what a run writes.

    Args:
        place: of the run.
        since: seconds since 1970 when this session began; its speed alone says how long is left.
    """

    def __init__(self, place: Place, since: float | None = None) -> None:
        self._place = place
        self._since = time.time() if since is None else since
        self._numbers = Numbers()
        self._file, self._read = 0, 0

    def numbers(self) -> Numbers:
        """What is written so far; a line that is not complete, or has no number, is left out."""
        for record in self._new_records():
            name, into = {
                "train": ("loss", self._numbers.losses),
                "validation": ("true", self._numbers.checked),
            }.get(str(record.get("kind")), ("", []))
            step, value, at = (_number(record.get(key)) for key in ("step", name, "time"))
            if step is None or value is None:
                continue
            into.append((step, value))
            if into is self._numbers.losses and at is not None:
                self._numbers.times.append((step, at))
        return self._numbers

    def _new_records(self) -> list[dict[str, Any]]:
        """Those since the last look; all of them where a run that goes on has written the file anew."""
        path = self._place.run / _METRICS
        try:
            status = path.stat()
            if status.st_ino != self._file or status.st_size < self._read:
                self._file, self._read, self._numbers = status.st_ino, 0, Numbers()
            if status.st_size == self._read:
                return []
            with path.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except OSError:
            return []
        text = text[: text.rfind(b"\n") + 1]
        self._read += len(text)
        return [record for line in text.splitlines() if (record := _record(line)) is not None]

    def text(self, numbers: Numbers, total: int | None) -> str:
        """Step, loss and the time that is left."""
        of_all = f" of {total:,}" if total else ""
        parts = [f"step {numbers.step:,}{of_all}", f"loss {numbers.losses[-1][1]:.4f}"]
        mine = [point for point in numbers.times if point[1] >= self._since]
        if total and len(mine) > 1 and mine[-1][0] > mine[0][0]:
            pace = (mine[-1][1] - mine[0][1]) / (mine[-1][0] - mine[0][0])
            parts.append(f"{duration(pace * (total - numbers.step))} left")
        return ", ".join(parts)

    def curve(self, numbers: Numbers, total: int | None) -> Image.Image:
        return curve(numbers.losses, numbers.checked, total or numbers.step)

    def sheet(self) -> Path | None:
        """The last sheet of pictures it drew."""
        return max(self._place.run.glob(f"samples/step-*/{_SHEET}"), default=None)


def total_steps(place: Place) -> int | None:
    """Steps of a run, as the trainer has written them down; None before it has."""
    file = place.run / "config.toml"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    stated = [line.partition("=")[2].strip() for line in lines if line.startswith("steps =")]
    return int(stated[0]) if len(stated) == 1 and stated[0].isdecimal() else None


def open_sheet(path: Path) -> Image.Image:
    """As a node shows it."""
    with Image.open(path) as opened:
        sheet = opened.convert("RGB")
    sheet.thumbnail((_LARGEST, _LARGEST))
    return sheet


def together(curve: Image.Image, sheet: Image.Image | None) -> Image.Image:
    """A curve, and below it the pictures, if any were drawn."""
    if sheet is None:
        return curve
    below = sheet.resize((curve.width, max(1, round(sheet.height * curve.width / sheet.width))))
    whole = Image.new("RGB", (curve.width, curve.height + below.height))
    whole.paste(curve, (0, 0))
    whole.paste(below, (0, curve.height))
    return whole


def last_line(lines: list[str]) -> str:
    """What the trainer says before its first step, fit to be shown."""
    line = lines[-1] if lines else ""
    return "".join(sign if sign.isprintable() else " " for sign in line)[:_LINE].strip()


def duration(seconds: float) -> str:
    """`4 h 5 min`, `6 min`, `7 s`."""
    if seconds < _MINUTE:
        return f"{math.ceil(max(seconds, 0))} s"
    hours, rest = divmod(round(seconds), _HOUR)
    return f"{hours:,} h {rest // _MINUTE} min" if hours else f"{rest // _MINUTE} min"


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _number(value: object) -> float | None:
    is_one = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_one else None  # type: ignore[return-value]
