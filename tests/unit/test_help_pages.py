"""The help pages as ComfyUI's panel shows them: a picture of each native node, and nothing wider than the panel."""

import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "nodes" / "web" / "docs"
PAGES = sorted(DOCS.glob("*.md"))
NATIVE = sorted(
    re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))[0]
    for path in (ROOT / "nodes" / "definitions").glob("[!_]*.py")
)
PICTURES = sorted(path for path in DOCS.rglob("*.*") if path.suffix != ".md")
COLUMNS = (
    2  # more do not fit into the panel; in native pages nothing is a table, for even these are cut off at the edge
)
ALL_PICTURES = 250_000  # bytes

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@each_page
def test_no_table_is_wider_than_the_panel(page: Path) -> None:
    rows = re.findall(r"^\|(.*)\|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    most = 0 if page.stem in NATIVE else COLUMNS
    assert [row for row in rows if len(re.split(r"(?<!\\)\|", row)) > most] == []


@each_page
def test_no_list_runs_into_the_one_before(page: Path) -> None:
    """Markdown makes one list of two that nothing but an empty line parts."""
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^(?:- |  ).*\n\n+- .*$", text, re.MULTILINE) == []


@pytest.mark.parametrize("name", NATIVE)
def test_a_native_node_has_its_picture(name: str) -> None:
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    (title,) = re.findall(r"^# (.*)", text)
    assert re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", text) == [(f"The node {title}", f"pictures/{name}.png")]
    with Image.open(DOCS / "pictures" / f"{name}.png") as picture:
        assert picture.format == "PNG"
        assert 250 <= picture.width <= 800


def test_pictures_are_small_and_each_is_shown() -> None:
    assert [path.name for path in PICTURES] == [f"{name}.png" for name in NATIVE]
    assert sum(path.stat().st_size for path in PICTURES) < ALL_PICTURES
