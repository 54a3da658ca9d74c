"""An SD3.5 adapter learns what its references tell, and learns nothing where they tell nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.overfit import train_and_validate, write_lists
from support.tiny_sd3_base import write_teachable_sd3
from support.trained import COLORS

STEPS = 100
NO_GAP = 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("overfit")
    write_teachable_sd3(folder / "base")
    write_lists(folder)
    return folder


@pytest.mark.long
def test_gap_opens_where_references_belong_to_their_pictures_and_only_there(
    folder: Path, encoder_folder: Callable[[str], Path]
) -> None:
    encoder = encoder_folder("siglip")
    vae = {"vae": str(folder / "base" / COLORS)}
    (before, own), (_, shuffled) = (
        train_and_validate(folder, encoder, name, steps=STEPS, more={"base": vae}) for name in ("own", "shuffled")
    )
    assert abs(before["gap_shuffled"]) < NO_GAP
    assert own["gap_shuffled"] > max(before["true"] / 4, 5 * own["gap_error"])
    assert own["gap_null"] > before["true"] / 4
    assert shuffled["true"] < 0.95 * before["true"], "what all pictures have in common is learnt"
    assert abs(shuffled["gap_shuffled"]) < NO_GAP
