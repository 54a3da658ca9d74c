"""Files that the documents name are there, and the example of a file's metadata is one."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from ipadapter_core.file.spec import AdapterSpec, EncoderHint, ResamplerSpec

ROOT = Path(__file__).parents[2]
FOLDERS = "bench|demo|docs|ipadapter_core|nodes|scripts|tests|trainer|workflows"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[^`\s*<]*)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_hole_is_reported_to_this_repository() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (repository,) = re.findall(r'^Repository = "(.*)"', project, re.MULTILINE)
    assert f"]({repository}/security/advisories/new)" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for page in ("README.md", "CONTRIBUTING.md"):
        assert "](SECURITY.md)" in (ROOT / page).read_text(encoding="utf-8")


def test_contributing_names_many_files() -> None:
    assert len(re.findall(rf"`(?:{FOLDERS})/", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))) > 40


def test_the_example_of_metadata_has_every_field() -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    stated = json.loads(example)
    for record, entries in (
        (AdapterSpec, stated),
        (ResamplerSpec, stated["resampler"]),
        (EncoderHint, stated["encoder"]),
    ):
        assert {field.name for field in fields(record)} == set(entries)
