"""An adapter for Z-Image or Qwen-Image learns what its references tell, and nothing where they tell nothing."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ipadapter_trainer.cache.fill import fill
from ipadapter_trainer.data.sources import open_sources
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.readers.opening import open_reader
from support.tiny_studio_base import write_teachable_studio_base
from support.trained import COLORS
from support.training import make_config

CPU = torch.device("cpu")
SIDE = 32
PALETTE = list(product((0, 255), repeat=3))
OWN = [(number, number) for number in range(len(PALETTE))]
EVERY = list(product(range(len(PALETTE)), repeat=2))  # a reference then says nothing about its picture
STEPS = 50
NO_GAP = 0.05
FAMILIES = [pytest.param("z_image", marks=pytest.mark.long), "qwen_image"]
pytestmark = pytest.mark.slow


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Base, eight pictures without a word, and two lists of who is whose reference."""
    write_teachable_studio_base(tmp_path / "base", request.param)
    for number, color in enumerate(PALETTE):
        Image.new("RGB", (SIDE, SIDE), color).save(tmp_path / f"{number}.png")
    for name, pairs in (("own", OWN), ("shuffled", EVERY)):
        rows = [{"image": f"{image}.png", "text": "", "reference": f"{other}.png"} for image, other in pairs]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def train_and_validate(folder: Path, encoder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train on a list; what validation on the pictures with their own references says before and after."""
    config = make_config(
        folder / "base",
        encoder,
        folder / f"{name}.jsonl",
        folder / name,
        base={"vae": str(folder / "base" / COLORS)},
        data={"resolution": SIDE, "reference": "column", "reference_column": "reference"},
        train={"steps": STEPS, "batch_size": 8, "log_every": STEPS},
        adapter={"kind": "plus", "tokens": 4, "resampler_dim": 64, "resampler_depth": 1},
        optimizer={"learning_rate": 0.001},
        objective={"timestep_min": 500},
        checkpoint={"every": STEPS},
        cache={"path": str(folder / "cache"), "precision": "fp32"},
        validation={"every": STEPS, "path": str(folder / "own.jsonl"), "timesteps": [600, 800, 990]},
    )
    fill(config, load_base(config.base, CPU), open_reader(config, CPU), open_sources(config))
    train(config)
    before, after = (record for record in read_records(config.run) if record["kind"] == "validation")
    return before, after


def test_gap_opens_where_references_belong_to_their_pictures_and_only_there(
    folder: Path, encoder_folder: Callable[[str], Path]
) -> None:
    encoder = encoder_folder("clip")
    before, own = train_and_validate(folder, encoder, "own")
    _, shuffled = train_and_validate(folder, encoder, "shuffled")
    assert before["gap_shuffled"] == 0, "values begin at zero"
    assert own["gap_shuffled"] > max(before["true"] / 3, 5 * own["gap_error"])
    assert own["gap_null"] > before["true"] / 4
    assert shuffled["true"] < 0.95 * before["true"], "what all pictures have in common is learnt"
    assert abs(shuffled["gap_shuffled"]) < NO_GAP
