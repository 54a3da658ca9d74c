"""An adapter for Anima learns what its references tell, and learns nothing where they tell nothing."""

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
from support.tiny_anima_base import write_teachable_anima
from support.training import make_config

CPU = torch.device("cpu")
SIDE = 32
PALETTE = list(product((0, 255), repeat=3))
OWN = [(number, number) for number in range(len(PALETTE))]
EVERY = list(product(range(len(PALETTE)), repeat=2))  # a reference then says nothing about its picture
STEPS = 300
GAP, NO_GAP = 0.1, 0.01


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, eight pictures without a word, and two lists of who is whose reference."""
    folder = tmp_path_factory.mktemp("overfit")
    pictures = torch.tensor(PALETTE, dtype=torch.float32)[:, :, None, None].expand(-1, -1, SIDE, SIDE) / 127.5 - 1
    write_teachable_anima(folder / "base", pictures)
    for number, color in enumerate(PALETTE):
        Image.new("RGB", (SIDE, SIDE), color).save(folder / f"{number}.png")
    for name, pairs in (("own", OWN), ("shuffled", EVERY)):
        rows = [{"image": f"{image}.png", "text": "", "reference": f"{other}.png"} for image, other in pairs]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train_and_validate(folder: Path, encoder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train on a list; what validation on the pictures with their own references says before and after."""
    config = make_config(
        folder / "base",
        encoder,
        folder / f"{name}.jsonl",
        folder / name,
        encoder={"feature": "last_hidden_state"},
        data={"resolution": SIDE, "reference": "column", "reference_column": "reference"},
        train={"steps": STEPS, "batch_size": 8, "log_every": STEPS},
        adapter={"kind": "plus", "tokens": 4, "resampler_dim": 64, "resampler_depth": 1},
        optimizer={"learning_rate": 0.01},
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
    encoder = encoder_folder("siglip")
    before, own = train_and_validate(folder, encoder, "own")
    _, shuffled = train_and_validate(folder, encoder, "shuffled")
    assert own["gap_shuffled"] > GAP
    assert own["gap_null"] > GAP / 2
    assert own["true"] < shuffled["true"] - GAP / 2 < before["true"] - GAP
    assert abs(shuffled["gap_shuffled"]) < NO_GAP
