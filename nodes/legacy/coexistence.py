"""Whose nodes answer to the ids of IPAdapter_plus: its own wherever it is installed, ours elsewhere."""

import logging
from functools import cache

from aiohttp.web import Application
from comfy_api.latest import io
from server import PromptServer

import nodes as comfy_nodes  # ComfyUI's own module of this name

from . import NODES
from .former import NODES as FORMER_NODES
from .interface import first_interface

logger = logging.getLogger(__name__)

# Only IPAdapter_plus and its forks have these; other ids are copied by packs that are no replacement for it.
TELLING_IDS = ("IPAdapterAdvanced", "IPAdapterModelLoader", "IPAdapterUnifiedLoader")


@cache  # classes are told apart by identity
def ids() -> dict[str, type]:
    """Our compatibility nodes by id, as ComfyUI registers them."""
    schemas = {node: node.GET_SCHEMA() for node in NODES}
    return {schema.node_id: first_interface(node, schema) for node, schema in schemas.items()}


def nodes_to_register() -> list[type]:
    """Our compatibility nodes, but for the ids another pack has registered before us."""
    taken = {node_id for node_id, node in ids().items() if _registered(node_id) not in (None, node)}
    if taken.intersection(TELLING_IDS):
        _say_so()
        return []
    _watch()
    return [node for node_id, node in ids().items() if node_id not in taken]


def former_nodes_to_register() -> list[type[io.ComfyNode]]:
    """The nodes it dropped, but for those a pack has registered before us: an old IPAdapter_plus may be installed."""
    by_id = ((node.GET_SCHEMA().node_id, node) for node in FORMER_NODES)
    return [node for node_id, node in by_id if _registered(node_id) in (None, node)]


def give_way() -> None:
    """Take our compatibility nodes back if a pack that was loaded after us replaced the telling ones.

    ComfyUI lets the last pack have an id; left to that, a workflow would get nodes of two packs.
    """
    ours = ids()
    if not any(node_id in ours and _registered(node_id) not in (None, ours[node_id]) for node_id in TELLING_IDS):
        return
    for node_id, node in ours.items():
        if _registered(node_id) is node:
            del comfy_nodes.NODE_CLASS_MAPPINGS[node_id]
            comfy_nodes.NODE_DISPLAY_NAME_MAPPINGS.pop(node_id, None)
    _say_so()


def _registered(node_id: str) -> type | None:
    found: type | None = comfy_nodes.NODE_CLASS_MAPPINGS.get(node_id)
    return found


def _watch() -> None:
    """Have `give_way` called when the server starts: after every pack was loaded, before any workflow is."""

    async def when_started(_app: Application) -> None:
        give_way()

    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.app.on_startup.append(when_started)


def _say_so() -> None:
    logger.info("IPAdapter_plus is installed: its own nodes run its workflows, ours stay out of the way.")
