"""One training from its first suggestion to a file that Load IP-Adapter lists, or on from where it stopped."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management
import comfy.utils
from PIL import Image

from ...ipadapter_core.errors import shown
from ...ipadapter_core.file.container import write_aside
from ..progress import show_on_node
from .child import Child, TrainingError
from .config import Asked, suggesting, write_config
from .places import Place
from .watching import Numbers, Watcher, last_line, open_sheet, together, total_steps

_BETWEEN_PICTURES = 5.0  # seconds
_LARGEST = 512  # pixels of a picture shown while it trains
_LARGEST_LAST = 1024  # of the one that stays


@dataclass(frozen=True)
class Outcome:
    """Attributes: adapter: the finished file. samples: the last sheet that was drawn, if any was."""

    adapter: Path
    curve: Image.Image
    samples: Image.Image | None


@dataclass
class Face:
    """What the node shows while a child works: bar, text, and the curve or the samples, in turns."""

    watcher: Watcher
    place: Place
    asked_steps: int
    node_id: str | None
    _bar: comfy.utils.ProgressBar | None = None
    _text: str = ""
    _shown: tuple[int, float] = (-1, 0.0)
    _sheet: Path | None = field(default=None)

    @property
    def total(self) -> int | None:
        return self.asked_steps or total_steps(self.place)

    def say(self, text: str) -> None:
        if text and text != self._text:
            self._text = text
            show_on_node(text, self.node_id)

    def look(self, child: Child) -> None:
        numbers, total = self.watcher.numbers(), self.total
        if not numbers.losses:
            self.say(last_line(child.lines()))
            return
        is_done = total is not None and numbers.step >= total
        ends = "; the last samples are drawn, and the file is written …"
        self.say(self.watcher.text(numbers, None) + ends if is_done else self.watcher.text(numbers, total))
        if total is not None:
            self._advance(numbers, total)

    def _advance(self, numbers: Numbers, total: int) -> None:
        if self._bar is None:
            self._bar = comfy.utils.ProgressBar(total)
        step, at = self._shown
        if numbers.step == step:
            return
        preview = None
        if time.monotonic() - at >= _BETWEEN_PICTURES:
            sheet = self.watcher.sheet()
            picture = open_sheet(sheet) if sheet not in (None, self._sheet) else self.watcher.curve(numbers, total)
            self._sheet = sheet
            preview, at = ("JPEG", picture, _LARGEST), time.monotonic()
        self._shown = numbers.step, at
        self._bar.update_absolute(numbers.step, total, preview)

    def end(self, outcome: Outcome, total: int) -> None:
        """Show what came out: a page keeps the last picture of a bar in sight, before those that a node returns."""
        last = ("JPEG", together(outcome.curve, outcome.samples), _LARGEST_LAST)
        comfy.utils.ProgressBar(total).update_absolute(total, total, last)


def train(asked: Asked, place: Place, node_id: str | None) -> Outcome:
    """Train, or go on, until it is finished.

    Raises:
        TrainingError: the trainer is not there, refuses, or ended early; what it has done so far is kept.
        InterruptProcessingException: the user stopped it; a checkpoint is written.
    """
    comfy.model_management.unload_all_models()  # the trainer is another process, and needs the room
    comfy.model_management.soft_empty_cache()
    face = Face(Watcher(place), place, asked.steps, node_id)
    with storage(place):
        place.folder.mkdir(parents=True, exist_ok=True)
        if not place.suggested.is_file():
            _suggest(asked, place, face)
        write_config(asked, place)
        face.say("the trainer starts …")
        child = Child(["train", str(place.config), "--json", "--stop-with-input"], place.log)
        try:
            child.wait(lambda: face.look(child), lambda: face.say("stops: writing a checkpoint …"))
        except comfy.model_management.InterruptProcessingException:
            face.say(f"stopped at step {face.watcher.numbers().step:,}; queued again, it goes on")
            raise
        if child.code != 0:
            raise child.failure(place.name)
        numbers, total = face.watcher.numbers(), face.total
        if total is None or numbers.step < total or not place.exported.is_file():
            raise TrainingError(
                f"a training that somebody else stopped at step {numbers.step:,}",
                expected="a training that comes to its end",
                action=f"queue again with the name {place.name}, and it goes on from there",
            )
        _publish(place)
        sheet = face.watcher.sheet()
        face.say(f"{face.watcher.text(numbers, None)}; Load IP-Adapter lists {place.adapter.name}")
        outcome = Outcome(place.adapter, face.watcher.curve(numbers, total), open_sheet(sheet) if sheet else None)
        face.end(outcome, total)
        return outcome


def _suggest(asked: Asked, place: Place, face: Face) -> None:
    """Have the trainer look at pictures and machine."""
    face.say("looks at the pictures …")
    part = place.suggested.with_name(f"part-{place.suggested.name}")
    part.unlink(missing_ok=True)
    child = Child(suggesting(asked, part), place.log)
    child.wait(lambda: None, lambda: None)
    if child.code != 0:
        raise child.failure(place.name)
    os.replace(part, place.suggested)


def _publish(place: Place) -> None:
    """Put the file where Load IP-Adapter finds it; an equal one stays as it is, and what hangs on it in the cache."""
    place.adapter.parent.mkdir(parents=True, exist_ok=True)
    if place.adapter.is_file() and place.adapter.read_bytes() == place.exported.read_bytes():
        return
    write_aside(place.adapter, lambda part: shutil.copyfile(place.exported, part))


@contextmanager
def storage(place: Place) -> Iterator[None]:
    """Turn what a disk refuses inside into a message."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{shown(str(error.filename or place.folder))} cannot be written or read ({error.strerror or error})",
            expected="a disk with room, and an output folder that can be written to",
            action=f"free some space, then queue again with the name {place.name}, and it goes on from its last "
            "checkpoint",
        ) from error
