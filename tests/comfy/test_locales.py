"""The native nodes in other languages: every text that the page shows, none that it does not, and what must stay as it is."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.client import Client
from demo.server import ComfyServer
from support import comfy_host, locales
from support.browser import Browser

pytest_plugins = ["support.server"]

LANGUAGES = ("de", "es", "fr", "ja", "ko", "ru", "zh", "zh-TW")
QUOTES = {
    "de": "„“",
    "es": "«»",
    "fr": "«»",
    "ja": "「」",
    "ko": "\u2018\u2019",
    "ru": "«»",
    "zh": "“”",
    "zh-TW": "「」",
}
# of the languages with another script, what a text must have at least one letter of
SCRIPTS = {
    "ja": r"[ぁ-ヿ一-鿿]",
    "ko": r"[가-힣]",
    "ru": "[\u0430-\u044f]",
    "zh": r"[一-鿿]|token",
    "zh-TW": r"[一-鿿]|token",
}
NUMBER = re.compile(r"(?<![A-Za-z.\d])\d+(?:\.\d+)?(?![A-Za-z\d])")
SHOWN = """
(node => [
    node.title,
    Object.fromEntries(node.inputs.map(slot => [slot.name, slot.label || slot.localized_name])),
    node.outputs.map(slot => slot.label || slot.localized_name),
])(LiteGraph.createNode("IPAEncodeImage"))
"""

each_language = pytest.mark.parametrize("language", LANGUAGES)


@pytest.fixture(scope="module")
def english(base_directory: Path) -> locales.Texts:
    return locales.english()


def texts(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text, and where it stands."""
    for key, value in tree.items():
        if isinstance(value, str):
            yield f"{path}{key}", value
        else:
            yield from texts(value, f"{path}{key}.")


def test_there_is_a_folder_for_each_language() -> None:
    assert {path.name for path in locales.FOLDER.iterdir()} == {"en", *LANGUAGES}
    for folder in locales.FOLDER.iterdir():
        assert {path.name for path in folder.iterdir()} == {"main.json", "nodeDefs.json"}, folder.name


def test_the_english_is_that_of_the_nodes(english: locales.Texts) -> None:
    """Whoever changes a text writes it anew (`python -m support.locales` in tests/) and looks at the translations."""
    assert locales.read("en") == english


@each_language
def test_every_text_is_there_and_none_is_stale(english: locales.Texts, language: str) -> None:
    there = dict(texts(locales.read(language)))
    assert list(there) == [where for where, _ in texts(english)]
    assert [where for where, text in there.items() if not text.strip()] == []
    assert list(dict(texts(locales.read(language, "main")))) == list(dict(texts(locales.read("en", "main"))))


@each_language
def test_sentences_are_translated(english: locales.Texts, language: str) -> None:
    same = dict(texts(english))
    there = dict(texts(locales.read(language)))
    assert [where for where, text in there.items() if " " in same[where] and text == same[where]] == []
    script = re.compile(SCRIPTS.get(language, r"\w"), re.IGNORECASE)
    assert [where for where, text in there.items() if not script.search(text)] == []


@each_language
def test_values_and_numbers_stay(english: locales.Texts, language: str) -> None:
    """What stands in a widget is not translated, and no number was lost."""
    there = dict(texts(locales.read(language)))
    for where, text in texts(english):
        for value in re.findall(r"'[^']+'(?!\w)", text):
            assert value in there[where], f"{where}: {value}"
        assert set(NUMBER.findall(text)) <= set(NUMBER.findall(there[where])), where


@each_language
def test_texts_name_nodes_by_their_titles_in_that_language(english: locales.Texts, language: str) -> None:
    translated, (opening, closing) = locales.read(language), QUOTES[language]
    titles = {entry["display_name"] for entry in translated.values()}
    there = dict(texts(translated))
    for where, text in texts(english):
        named = {node for node, entry in english.items() if re.search(rf"\b{entry['display_name']}\b(?! \w+ I)", text)}
        quoted = set(re.findall(rf"{opening}\s?([^{closing}]+?)\s?{closing}", there[where]))
        assert quoted <= titles, where
        if not where.endswith(".display_name"):
            assert bool(quoted) == bool(named), where


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_nothing_means_something_to_the_page(language: str) -> None:
    """Its translator replaces names in braces, follows @ to other texts, and takes | for singular and plural."""
    for file in ("nodeDefs", "main"):
        assert [where for where, text in texts(locales.read(language, file)) if re.search(r"[{}@|$]", text)] == []


def test_comfyui_serves_them(base_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths
    from app.custom_node_manager import CustomNodeManager

    (tmp_path / "ipadapter-studio").symlink_to(comfy_host.ROOT)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "custom_nodes", ([str(tmp_path)], set()))
    served = CustomNodeManager().build_translations()
    assert served.keys() == {"en", *LANGUAGES}
    for language, entries in served.items():
        assert entries == locales.read(language, "main") | {"nodeDefs": locales.read(language)}


@pytest.mark.slow
def test_the_page_shows_them(server: ComfyServer, browser: Browser) -> None:
    """Sockets too, which the page would call by their display_name."""
    with Client(server.url) as client:
        client.set("Comfy.Locale", "fr")
    try:
        with browser.page() as tab:
            tab.open(server.url)
            tab.wait_for("window.app?.graph && window.LiteGraph?.registered_node_types['IPAEncodeImage']")
            shown = tab.evaluate(SHOWN)
    finally:
        with Client(server.url) as client:
            client.set("Comfy.Locale", "en")
    texts_of_node = locales.read("fr")["IPAEncodeImage"]
    names = {name: entry["name"] for name, entry in texts_of_node["inputs"].items()}
    assert shown == [texts_of_node["display_name"], names, [texts_of_node["outputs"]["0"]["name"]]]
