"""docs/scaling.md shows what `bench/scaling_table.py` counts, and the files it names are there."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench"))

import scaling_table  # noqa: E402


@pytest.mark.slow
@pytest.mark.long
def test_tables_are_those_of_the_script() -> None:
    text = scaling_table.DOCUMENT.read_text(encoding="utf-8")
    made = scaling_table.tables(scaling_table.measure())
    assert set(re.findall(r"<!-- table (\w+) -->", text)) == made.keys()
    assert scaling_table.fill_in(text, made) == text


def test_files_and_settings_named_are_there() -> None:
    text = scaling_table.DOCUMENT.read_text(encoding="utf-8")
    files = set(re.findall(r"(?:trainer|bench)/[\w/]+\.\w+", text))
    assert files
    assert [name for name in files if not (ROOT / name).is_file()] == []
    recipes = ROOT / "trainer" / "configs" / "accelerate"
    assert [name for name in re.findall(r"`(\w+\.yaml)`", text) if not (recipes / name).is_file()] == []
