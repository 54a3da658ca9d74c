"""What goes to the Comfy registry: small, whole, with a picture and links that a registry can show."""

import posixpath
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from support.package import is_packed, package, packed_files

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RAW = "https://raw.githubusercontent.com/ipadapter-studio/ipadapter-studio/main/"
LARGEST = 1_500_000  # bytes
NEEDED = ("__init__.py", "pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md")
FOLDERS = ("nodes", "ipadapter_core", "trainer", "nodes/web/docs", "workflows")
LEFT_OUT = (".ci", "bench", "demo", "docs", "scripts", "tests")


def test_it_is_small() -> None:
    assert len(package()) < LARGEST


def test_it_has_what_runs_and_nothing_else() -> None:
    assert [path for path in (*NEEDED, *FOLDERS) if not is_packed(path)] == []
    assert [path for path in LEFT_OUT if is_packed(path)] == []
    shown = [path for path in packed_files() if path.startswith(("workflows/", "subgraphs/"))]
    assert [path for path in shown if "demo" in path.lower()] == []


def test_every_python_file_that_it_imports_is_in_it() -> None:
    for folder in ("nodes", "ipadapter_core", "trainer"):
        there = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}
        assert there - packed_files() == set()


@pytest.mark.parametrize(("name", "ratio"), [("Icon", 1), ("Banner", 21 / 9)])
def test_the_registry_gets_a_picture(name: str, ratio: float) -> None:
    """By an absolute address, and so not in the package: a square of at most 400 pixels, and 21:9."""
    path = PROJECT["tool"]["comfy"][name].removeprefix(RAW)
    assert not is_packed(path)
    with Image.open(ROOT / path) as picture:
        assert picture.format == "PNG"
        assert picture.width / picture.height == pytest.approx(ratio, rel=0.005)
        assert name != "Icon" or picture.width <= 400
    assert (ROOT / path).stat().st_size < 60_000


def test_its_addresses_are_of_one_repository() -> None:
    urls = PROJECT["project"]["urls"]
    assert {"Homepage", "Documentation", "Repository", "Issues", "Changelog"} <= urls.keys()
    for address in urls.values():
        assert address.startswith(urls["Repository"])
        named = re.fullmatch(r".*/blob/main/(.*)", address)
        assert named is None or (ROOT / named[1]).exists(), address


def test_links_of_its_pages_lead_to_what_it_has() -> None:
    """What it leaves out is linked by an absolute address; README.md has a test of its own."""
    pages = [path for path in packed_files() if path.endswith(".md")]
    assert len(pages) > 60
    for page in pages:
        for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text(encoding="utf-8")):
            if link.startswith(("#", "https://", "http://")):
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link.partition("#")[0]))
            assert is_packed(target), f"{page} links {link}"
