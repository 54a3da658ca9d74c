"""An adapter for Z-Image or Qwen-Image learns what its references tell, and nothing where they tell nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.overfit import train_and_validate, write_lists
from support.tiny_studio_base import write_teachable_studio_base
from support.trained import COLORS

STEPS, RATE = 50, 0.001
NO_GAP = 0.05
FAMILIES = ["z_image", "qwen_image"]
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_teachable_studio_base(tmp_path / "base", request.param)
    write_lists(tmp_path)
    return tmp_path


def test_gap_opens_where_references_belong_to_their_pictures_and_only_there(
    folder: Path, encoder_folder: Callable[[str], Path]
) -> None:
    encoder = encoder_folder("clip")
    vae = {"vae": str(folder / "base" / COLORS)}
    (before, own), (_, shuffled) = (
        train_and_validate(folder, encoder, name, steps=STEPS, learning_rate=RATE, more={"base": vae})
        for name in ("own", "shuffled")
    )
    assert before["gap_shuffled"] == 0, "values begin at zero"
    assert own["gap_shuffled"] > max(before["true"] / 3, 5 * own["gap_error"])
    assert own["gap_null"] > before["true"] / 4
    assert shuffled["true"] < 0.95 * before["true"], "what all pictures have in common is learnt"
    assert abs(shuffled["gap_shuffled"]) < NO_GAP
