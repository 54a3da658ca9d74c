"""The config of a training: what the page says, in a file that stands on what `ipadapter new` suggests."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...ipadapter_core.errors import BadInputError, one_of, shown
from ...ipadapter_core.file.container import write_aside
from ..paths import NONE
from .places import Place

KINDS = ("plus", "base")
LARGEST_SEED = 10**18
_SIDES = 8  # pixels of a resolution's step
_MOST_BETWEEN = 10  # steps from one number to the next
_POINTS = 100  # of a curve, at least
_SAID = """# Written by Train IP-Adapter each time it is queued; what it does not say is in suggested.toml, which is yours to change.
# In a terminal the run goes on with: ipadapter train train.toml
"""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the node was asked for; 0 leaves a number to the suggestion.

    Attributes:
        described_by: for a base that is a single file, the folder whose configs describe it.
        start_from: an adapter file, or "none".
    """

    pictures: Path
    base: Path
    described_by: Path | None
    encoder: Path
    kind: str
    start_from: str
    steps: int
    resolution: int
    learning_rate: float
    seed: int

    def __post_init__(self) -> None:
        """Raises BadInputError: what no training can have, as a linked input may give it."""
        one_of(self.kind, KINDS, "kind")
        wrong = {
            "steps": (self.steps < 0, "0 or more"),
            "resolution": (self.resolution < 0 or self.resolution % _SIDES != 0, f"0 or a multiple of {_SIDES}"),
            "learning_rate": (self.learning_rate < 0, "0 or more"),
            "seed": (not 0 <= self.seed <= LARGEST_SEED, f"0 to {LARGEST_SEED}"),
        }
        for name, (is_wrong, expected) in wrong.items():
            if is_wrong:
                raise BadInputError(
                    f"{name} {getattr(self, name)}", expected=expected, action=f"correct {name} of Train IP-Adapter"
                )


def suggesting(asked: Asked, output: Path) -> list[str]:
    """The arguments of the command that suggests."""
    decided = ["--kind", asked.kind, "--start-from", asked.start_from]
    if asked.steps:
        decided += ["--steps", str(asked.steps)]
    models = ["--base", str(asked.base), "--encoder", str(asked.encoder)]
    return ["new", str(asked.pictures), "--output", str(output), *models, *decided, "--json"]


def write_config(asked: Asked, place: Place) -> None:
    """Raises BadInputError: a path that no file of settings can hold."""
    text = _SAID + f"extends = {_value(place.suggested.name, 'name')}\n"
    for section, values in _sections(asked, place).items():
        lines = [f"{key} = {_value(value, key)}" for key, value in values.items() if value is not None]
        text += "\n".join(["", f"[{section}]", *lines, ""])
    write_aside(place.config, lambda part: part.write_text(text, encoding="utf-8"))


def _sections(asked: Asked, place: Place) -> Mapping[str, Mapping[str, object]]:
    described_by = None if asked.described_by is None else str(asked.described_by)
    between = max(1, min(_MOST_BETWEEN, asked.steps // _POINTS)) if asked.steps else _MOST_BETWEEN
    return {
        # the suggested autoencoder of SDXL would be fetched
        "base": {"model": str(asked.base), "config": described_by, "vae": NONE},
        "encoder": {"model": str(asked.encoder)},
        "adapter": {"kind": asked.kind, "pretrained": asked.start_from},
        "data": {"path": str(asked.pictures), "format": "folder", "resolution": asked.resolution or None},
        "train": {
            "output": str(place.run),
            "steps": asked.steps or None,
            "seed": asked.seed,
            "log_every": between,
            "trackers": [],
        },
        "optimizer": {"learning_rate": asked.learning_rate or None},
        "cache": {"path": str(place.cache)},
        "export": {"title": place.name},
    }


def _value(value: object, where: str) -> str:
    """In TOML, whose texts are JSON's but for one sign that JSON leaves as it is."""
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInputError(
            f"{where} {shown(str(value))}, a name that is no text",
            expected="names of folders and files in UTF-8",
            action="rename it",
        ) from error
    return text
