"""The site has every guide and every help page, and its links lead on; `scripts/docs.sh` builds it, in .ci/run."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """The hook, as mkdocs loads it."""
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation_once(site: ModuleType) -> None:
    parts = [part if isinstance(part, str) else next(iter(part.values())) for part in site.navigation()]
    shown = [page for part in parts for page in ([part] if isinstance(part, str) else part)]
    assert sorted(shown) == sorted(place for place in site.pages().values() if place.endswith(".md"))
    assert len(shown) > 70
    definitions = (ROOT / "nodes" / "definitions").glob("[!_]*.py")
    ids = {re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))[0] for path in definitions}
    assert set(site.native_nodes()) == ids, "each native node has its row in README.md, which the site follows"


@pytest.mark.parametrize(
    ("path", "link", "there"),
    [
        ("README.md", "nodes/web/docs/IPAApply.md#torchcompilemodel", "nodes/IPAApply.md#torchcompilemodel"),
        ("README.md", "{repository}docs/migrating.md#programs-and-packs", "migrating.md#programs-and-packs"),
        ("README.md", "{raw}docs/demo.png", "demo.png"),
        ("README.md", "trainer/configs", "{repository}trainer/configs"),
        ("docs/training.md", "../README.md#install", "index.md#install"),
        (
            "nodes/web/docs/IPAdapterAdvanced.md",
            "{repository}docs/migrating.md#weight-types",
            "../migrating.md#weight-types",
        ),
        ("nodes/web/docs/IPAApply.md", "pictures/IPAApply.png", "pictures/IPAApply.png"),
        ("docs/formats.md", "https://example.org/docs/formats.md", "https://example.org/docs/formats.md"),
        ("docs/formats.md", "#metadata", "#metadata"),
    ],
)
def test_links_lead_on(site: ModuleType, path: str, link: str, there: str) -> None:
    link, there = (text.format(repository=site.REPOSITORY, raw=site.RAW) for text in (link, there))
    assert site.linked(path, f"See [this]({link}).") == f"See [this]({there})."


@pytest.mark.parametrize(
    "link", ["docs/nothing.md", "https://github.com/ipadapter-studio/ipadapter-studio/blob/main/no.md"]
)
def test_a_link_to_nothing_is_an_error(site: ModuleType, link: str) -> None:
    with pytest.raises(site.MissingFileError, match=re.escape(link)):
        site.linked("README.md", f"[this]({link})")
