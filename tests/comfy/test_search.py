"""What ComfyUI's page finds of ours when somebody types what it is for: in which order among themselves, as its own nodes
and those of other packs stand between them.

The page ranks by a node's name and title, then by how often it was used anywhere; words that a node or blueprint lists
beside them find it, but come after all that have them in their title.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web

from demo.client import Client
from demo.server import ComfyServer
from support import comfy_host
from support.browser import Page
from support.templates import BLUEPRINTS, read

pytest_plugins = ["support.server"]

BEGINNERS = "Apply IP-Adapter from Image"
FIRST = {
    "image prompt": ["Image prompt", BEGINNERS],
    "reference image": [BEGINNERS, "Image prompt"],
    "image variation": [BEGINNERS, "Image prompt"],
    "style": ["Style of a picture", BEGINNERS],
    "style of a picture": ["Style of a picture"],
    "style transfer": [BEGINNERS, "Style of a picture"],
    "composition": ["Composition of a picture", BEGINNERS],
    "face": ["Face"],
    "face swap": ["Encode Face for IP-Adapter", "Face"],
    "portrait": ["Encode Face for IP-Adapter", "Face"],
    "left and right": ["Left and right"],
    "regional": ["IP-Adapter Region", BEGINNERS, "Left and right"],
}
NODE_DEFINITIONS = "document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s.get('nodeDef')"


@pytest.mark.smoke
def test_the_server_says_by_which_words_blueprints_are_found(client: Client) -> None:
    """The page reads them there, and not in the file of a blueprint that a pack brings."""
    listed = client.get("/global_subgraphs").values()
    said = {entry["name"]: entry["info"]["search_aliases"] for entry in listed if "search_aliases" in entry["info"]}
    assert said == {path.stem: read(path)["extra"]["BlueprintSearchAliases"] for path in BLUEPRINTS}


def test_a_server_that_lists_them_in_another_way_starts(
    base_directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from server import PromptServer

    blueprints = comfy_host.pack("nodes.blueprints")
    without_list = SimpleNamespace(app=web.Application())
    monkeypatch.setattr(PromptServer, "instance", without_list, raising=False)
    blueprints.say_search_words()
    asyncio.run(web.AppRunner(without_list.app).setup())
    assert "found by their names alone" in caplog.text


@pytest.mark.slow
def test_blueprints_and_the_beginners_node_come_first(page: Page, server: ComfyServer) -> None:
    names = [path.stem for path in BLUEPRINTS]
    for name in names:  # they are fetched after the nodes, one by one
        page.wait_for(f"{ours(server, name, names)}.includes({name!r})", seconds=300)
    found = {words: page.evaluate(ours(server, words, names)) for words in FIRST}
    assert {words: found[words][: len(first)] for words, first in FIRST.items()} == FIRST


def ours(server: ComfyServer, words: str, blueprints: Sequence[str]) -> str:
    """A script: titles of what is ours among the hits."""
    is_ours = f"hit.python_module === 'custom_nodes.{server.pack}' || {blueprints}.includes(hit.display_name)"
    search = f"{NODE_DEFINITIONS}.nodeSearchService.searchNode({words!r}, [], {{limit: 64}})"
    return f"{search}.filter(hit => {is_ours}).map(hit => hit.display_name)"
