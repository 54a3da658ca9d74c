"""An adapter for Anima learns what its references tell, and learns nothing where they tell nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.overfit import PALETTE, PLUS, SIDE, train_and_validate, write_lists
from support.tiny_anima_base import write_teachable_anima

STEPS = 300
GAP, NO_GAP = 0.1, 0.01


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("overfit")
    pictures = torch.tensor(PALETTE, dtype=torch.float32)[:, :, None, None].expand(-1, -1, SIDE, SIDE) / 127.5 - 1
    write_teachable_anima(folder / "base", pictures)
    write_lists(folder)
    return folder


KINDS: dict[str, dict[str, Any]] = {
    "none": PLUS,
    "block": {**PLUS, "gate": "block"},
    "time": {"kind": "plus", "tokens": 4, "resampler_depth": 1, "gate": "time"},
}


@pytest.mark.parametrize("gate", [pytest.param(gate, marks=[pytest.mark.long] * (gate != "none")) for gate in KINDS])
def test_gap_opens_where_references_belong_to_their_pictures_and_only_there(
    folder: Path, encoder_folder: Callable[[str], Path], gate: str
) -> None:
    encoder = encoder_folder("siglip")
    more = {"encoder": {"feature": "last_hidden_state"}, "adapter": KINDS[gate]}
    (before, own), (_, shuffled) = (
        train_and_validate(folder, encoder, name, steps=STEPS, run=gate, more=more) for name in ("own", "shuffled")
    )
    assert own["gap_shuffled"] > GAP
    assert own["gap_null"] > GAP / 2
    assert own["true"] < shuffled["true"] - GAP / 2 < before["true"] - GAP
    assert abs(shuffled["gap_shuffled"]) < NO_GAP
