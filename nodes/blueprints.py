"""Blueprints in `subgraphs/`, as ComfyUI's page searches them."""

import json
import logging
from pathlib import Path
from typing import Any

from aiohttp import web
from server import PromptServer

_FOLDER = Path(__file__).resolve().parents[1] / "subgraphs"
_WORDS = "BlueprintSearchAliases"  # in a blueprint's file, as ComfyUI saves it

logger = logging.getLogger(__name__)


def say_search_words() -> None:
    """Have the server list by which words our blueprints are found.

    The page reads them in their files as well, but only for blueprints of the user.
    """
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.app.on_startup.append(_add_words)  # it lists them once, so not before all packs are loaded


async def _add_words(_: web.Application) -> None:
    try:
        listed = await PromptServer.instance.subgraph_manager.get_custom_node_subgraphs({})
        for entry in listed.values():
            path = Path(entry["path"]).resolve()
            if path.parent == _FOLDER:
                entry["info"]["search_aliases"] = search_words(json.loads(path.read_text(encoding="utf-8")))
    # A ComfyUI that lists them in another way, or a file that somebody broke: no reason not to start.
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        logger.warning("Blueprints of IP-Adapter Studio are found by their names alone (%s).", error)


def search_words(blueprint: dict[str, Any]) -> list[str]:
    """The words that a blueprint is found by, its name apart."""
    words: list[str] = blueprint["extra"][_WORDS]
    return words
