"""A part that stands in a workflow several times, as ComfyUI's page saves it: nodes within one node."""

import uuid
from collections.abc import Mapping
from typing import Any

from demo.layout import SLOT, Page, Source

FIRST = 101  # id of the first node within; the page wants ids that are nowhere twice
LEFT, RIGHT = -10, -20  # ids the page gives to the two ends
_ENDS = {"x": -200, "width": 120, "between": 80}  # pixels


def subgraph(name: str, inner: Page, inputs: Mapping[str, Source], outputs: Mapping[str, Source]) -> dict[str, Any]:
    """The definition of a subgraph.

    Args:
        inner: its nodes, with ids from `FIRST`.
        inputs: by name, the node and the number of the input that it leads to.
        outputs: by name, the node and the number of the output that it comes from.
    """
    links = [_link(*link) for link in inner.links]
    ends: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
    for number, (end, (node, slot)) in enumerate(inputs.items()):
        entry = node["inputs"][slot]
        entry["link"] = len(links) + 1
        links.append(_link(entry["link"], LEFT, number, node["id"], slot, entry["type"]))
        ends["inputs"].append(_end(name, "input", end, entry["type"], entry["link"]))
    for number, (end, (node, slot)) in enumerate(outputs.items()):
        entry, link = node["outputs"][slot], len(links) + 1
        entry["links"] = [*(entry["links"] or []), link]
        links.append(_link(link, node["id"], slot, RIGHT, number, entry["type"]))
        ends["outputs"].append(_end(name, "output", end, entry["type"], link))
    right = max(node["pos"][0] + node["size"][0] for node in inner.nodes) + _ENDS["between"]
    last = {"lastGroupId": 0, "lastNodeId": inner.nodes[-1]["id"], "lastLinkId": len(links), "lastRerouteId": 0}
    return {
        "id": _uuid(name),
        "version": 1,
        "state": last,
        "revision": 0,
        "config": {},
        "name": name,
        "inputNode": {"id": LEFT, "bounding": _box(_ENDS["x"], len(inputs))},
        "outputNode": {"id": RIGHT, "bounding": _box(right, len(outputs))},
        **ends,
        "widgets": [],
        "nodes": inner.nodes,
        "groups": [],
        "links": links,
        "extra": {},
    }


def _link(link: int, origin: int, origin_slot: int, target: int, target_slot: int, kind: str) -> dict[str, Any]:
    ends = {"origin_id": origin, "origin_slot": origin_slot, "target_id": target, "target_slot": target_slot}
    return {"id": link, **ends, "type": kind}


def _end(subgraph_name: str, side: str, name: str, kind: str, link: int) -> dict[str, Any]:
    return {"id": _uuid(f"{subgraph_name}/{side}/{name}"), "name": name, "type": kind, "linkIds": [link]}


def _box(x: int, slots: int) -> list[int]:
    return [x, 0, _ENDS["width"], SLOT * (slots + 2)]


def _uuid(name: str) -> str:
    """The same for the same name, so that a file written again is the same."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"ipadapter-studio/{name}"))
