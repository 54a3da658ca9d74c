"""A face adapter learns whose face it is, and learns nothing where faces say nothing of the picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from support.face_files import EMBEDDING
from support.faces import FACE_KINDS, READS_PICTURES, face_config, write_list
from support.overfit import EVERY, OWN, SIDE, before_and_after, write_colors
from support.trained import COLORS, write_teachable_base

STEPS, HIGH_NOISE, NO_GAP = 100, 500, 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base, a picture of each person's colour, one gray aligned face for all, and two lists of who is on which."""
    folder = tmp_path_factory.mktemp("face_overfit")
    write_teachable_base(folder / "base")
    Image.new("RGB", (SIDE, SIDE), (90, 90, 90)).save(folder / "face.png")
    vectors = torch.nn.functional.normalize(
        torch.randn(8, EMBEDDING, generator=torch.Generator().manual_seed(3)), dim=1
    )
    write_colors(folder)
    for name, pairs in (("own", OWN), ("shuffled", EVERY)):
        rows = [
            {"image": f"{image}.png", "text": "", "reference": "face.png", "face": vectors[other].tolist()}
            for image, other in pairs
        ]
        write_list(folder, rows, f"{name}.jsonl")
    return folder


def train_and_validate(folder: Path, encoder: Path, name: str, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config = face_config(
        folder / "base",
        encoder,
        folder / f"{name}.jsonl",
        folder / f"{kind}-{name}",
        kind,
        base={"vae": str(folder / "base" / COLORS)},
        encoder={"face_model": None},
        data={
            "resolution": SIDE,
            "reference": "column",
            "reference_column": "reference",
            "identity_column": "face",
        },
        train={"steps": STEPS, "batch_size": 8, "log_every": STEPS},
        adapter={"resampler_depth": 1},
        optimizer={"learning_rate": 0.005},
        objective={"timestep_min": HIGH_NOISE},
        checkpoint={"every": STEPS},
        validation={"every": STEPS, "path": str(folder / "own.jsonl"), "timesteps": [600, 800, 990]},
    )
    return before_and_after(config)


@pytest.mark.long
@pytest.mark.parametrize("kind", FACE_KINDS)
def test_gap_opens_where_faces_are_of_the_person_and_only_there(
    folder: Path, encoder_folder: Callable[[str], Path], kind: str
) -> None:
    """Every face looks alike, so that the identity alone can tell."""
    encoder = encoder_folder("clip")
    before, own = train_and_validate(folder, encoder, "own", kind)
    assert abs(before["gap_shuffled"]) < NO_GAP
    assert own["gap_shuffled"] > max(before["true"] / 4, 5 * own["gap_error"])
    if kind in READS_PICTURES:
        return
    _, shuffled = train_and_validate(folder, encoder, "shuffled", kind)
    assert shuffled["true"] < 0.95 * before["true"], "what all pictures have in common is learnt"
    assert abs(shuffled["gap_shuffled"]) < NO_GAP
