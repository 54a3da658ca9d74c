"""Eight colours to learn by heart: where each picture is its own reference, and where references tell nothing."""

import json
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from ipadapter_trainer.config import Config
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records

from .training import make_config

SIDE = 32
PALETTE = list(product((0, 255), repeat=3))
OWN = [(number, number) for number in range(len(PALETTE))]
EVERY = list(product(range(len(PALETTE)), repeat=2))  # a reference then says nothing about its picture
PLUS = {"kind": "plus", "tokens": 4, "resampler_dim": 64, "resampler_depth": 1}


def write_colors(folder: Path) -> None:
    """A picture of each colour."""
    for number, color in enumerate(PALETTE):
        Image.new("RGB", (SIDE, SIDE), color).save(folder / f"{number}.png")


def write_lists(folder: Path) -> None:
    """Two lists of who is whose reference: `own.jsonl`, `shuffled.jsonl`; no picture has a word."""
    write_colors(folder)
    for name, pairs in (("own", OWN), ("shuffled", EVERY)):
        rows = [{"image": f"{image}.png", "text": "", "reference": f"{other}.png"} for image, other in pairs]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train_and_validate(
    folder: Path,
    encoder: Path,
    name: str,
    *,
    steps: int,
    learning_rate: float = 0.01,
    base: str = "base",
    run: str = "",
    more: dict[str, dict[str, Any]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train on a list; as `before_and_after`. The cache is filled first.

    Args:
        base: folder of the model.
        more: other sections of the config, such as another adapter.
        run: what tells the run and its cache from those of others in the folder.
    """
    config = make_config(
        folder / base,
        encoder,
        folder / f"{name}.jsonl",
        folder / f"{run}{name}",
        data={"resolution": SIDE, "reference": "column", "reference_column": "reference"},
        train={"steps": steps, "batch_size": 8, "log_every": steps},
        optimizer={"learning_rate": learning_rate},
        objective={"timestep_min": 500},
        checkpoint={"every": steps},
        cache={"path": str(folder / f"{run}cache"), "precision": "fp32"},
        validation={"every": steps, "path": str(folder / "own.jsonl"), "timesteps": [600, 800, 990]},
        **{"adapter": PLUS, **more},
    )
    return before_and_after(config)


def before_and_after(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """What validation on the pictures with their own references says before and after training."""
    train(config)
    before, after = (record for record in read_records(config.run) if record["kind"] == "validation")
    return before, after
