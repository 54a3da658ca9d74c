"""A workflow as ComfyUI's page saves it, filled column by column."""

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

Node = dict[str, Any]
Source = tuple[Node, int]
"""A node and the number of one of its outputs."""

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
SIMPLE = WORKFLOWS / "Image prompt.json"
TITLE, MARGIN, GAP, BETWEEN, SLOT, PREVIEW = 30, 20, 30, 55, 20, 200  # pixels; a node's title stands above its position
ENLARGE: Node = {
    "type": "ImageScaleBy",
    "size": [315, 82],
    "inputs": [
        {"name": "image", "type": "IMAGE", "link": None},
        {"name": "upscale_method", "type": "COMBO", "widget": {"name": "upscale_method"}, "link": None},
        {"name": "scale_by", "type": "FLOAT", "widget": {"name": "scale_by"}, "link": None},
    ],
    "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": None}],
    "properties": {"Node name for S&R": "ImageScaleBy"},
}


class Page:
    """Nodes from top to bottom in columns from left to right, in titled groups.

    Args:
        first: id of the first node.
    """

    def __init__(self, first: int = 1) -> None:
        self.nodes: list[Node] = []
        self.links: list[list[Any]] = []
        self.groups: list[dict[str, Any]] = []
        self.subgraphs: list[dict[str, Any]] = []
        self._first = first
        self._x, self._y, self._width = 0, 0, 0

    def column(self, width: int = 315) -> None:
        """Start a column, in no group."""
        self._x += self._width + BETWEEN if self._width else 0
        self._y, self._width = 0, width

    def group(self, title: str, color: str) -> None:
        """Frame the column's nodes from here on."""
        top = self._y + (TITLE if self._y else 0)
        bounding = [self._x - MARGIN, top, self._width + 2 * MARGIN, 0]
        self.groups.append(
            {"id": len(self.groups) + 1, "title": title, "bounding": bounding, "color": color, "flags": {}}
        )
        self._y = top + TITLE + GAP // 2

    def note(self, text: str, height: int) -> None:
        self._append({**_shape("MarkdownNote"), "title": "What this shows"}, [text], height)

    def add(
        self,
        kind: str,
        sources: Mapping[str, Source] | None = None,
        widgets: Sequence[Any] = (),
        *,
        title: str | None = None,
        height: int | None = None,
    ) -> Node:
        """A node below the last one, in the last group.

        Args:
            sources: by input name.
            widgets: values in the page's order.
            height: pixels; the usual one if None.
        """
        node = self._append(_shape(kind) | ({"title": title} if title else {}), widgets, height)
        return self._connected(node, sources or {})

    def add_subgraph(self, definition: dict[str, Any], sources: Mapping[str, Source]) -> Node:
        """A node that stands for a whole subgraph of `demo/subgraph.py`."""
        if definition not in self.subgraphs:
            self.subgraphs.append(definition)
        inputs = [{"name": end["name"], "type": end["type"], "link": None} for end in definition["inputs"]]
        outputs = [{"name": end["name"], "type": end["type"], "links": None} for end in definition["outputs"]]
        shape = {"type": definition["id"], "size": [0, SLOT * len(inputs) + PREVIEW], "inputs": inputs}
        shape |= {"outputs": outputs, "title": definition["name"], "properties": {}}
        return self._connected(self._append(shape, (), None), sources)

    def text(self) -> str:
        """The file: one line a node, link or group, so that changes can be read."""
        extra = {"ds": {"scale": 0.6, "offset": [120, 160]}}  # below about 0.5 the page leaves texts out
        inside = [node["id"] for definition in self.subgraphs for node in definition["nodes"]]
        parts = {"revision": 0, "last_node_id": max([self.nodes[-1]["id"], *inside]), "last_link_id": len(self.links)}
        lists = {"nodes": self.nodes, "links": self.links, "groups": self.groups}
        end = {"definitions": {"subgraphs": self.subgraphs}} if self.subgraphs else {}
        end |= {"config": {}, "extra": extra, "version": 0.4}
        lines = [f'  "{name}": {json.dumps(value)}' for name, value in parts.items()]
        for name, entries in lists.items():
            rows = ",\n".join(f"    {json.dumps(entry, ensure_ascii=False)}" for entry in entries)
            lines.append(f'  "{name}": [\n{rows}\n  ]')
        lines += [f'  "{name}": {json.dumps(value)}' for name, value in end.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def _append(self, shape: Node, widgets: Sequence[Any], height: int | None) -> Node:
        place = {"id": self._first + len(self.nodes), "type": shape["type"]}
        top = self._y + (TITLE if self._y else 0)
        place |= {"pos": [self._x, top], "size": [self._width, height or shape["size"][1]]}
        node = {**place, "flags": {}, "order": len(self.nodes), "mode": 0, **_without(shape, place)}
        if widgets:
            node["widgets_values"] = list(widgets)
        self._y = top + node["size"][1] + GAP
        self.nodes.append(node)
        return node

    def _connected(self, node: Node, sources: Mapping[str, Source]) -> Node:
        slots = {entry["name"]: slot for slot, entry in enumerate(node["inputs"])}
        for name, (source, number) in sources.items():
            self._link(source, number, node, slots[name])
        if self.groups:
            left, top, width, _ = self.groups[-1]["bounding"]
            self.groups[-1]["bounding"] = [left, top, width, self._y + MARGIN - top]
        return node

    def _link(self, source: Node, number: int, node: Node, slot: int) -> None:
        link, output = len(self.links) + 1, source["outputs"][number]
        output["links"] = [*(output["links"] or []), link]
        node["inputs"][slot]["link"] = link
        self.links.append([link, source["id"], number, node["id"], slot, output["type"]])


def _without(node: Node, other: Node) -> Node:
    return {name: value for name, value in node.items() if name not in other}


def _shape(kind: str) -> Node:
    return copy.deepcopy(_shapes()[kind])


@cache
def _shapes() -> dict[str, Node]:
    """Inputs, outputs and size by node type, as the pack's workflows have them."""
    shapes: dict[str, Node] = {"ImageScaleBy": ENLARGE}
    kept = ("type", "size", "inputs", "outputs", "properties", "color", "bgcolor")
    for path in (SIMPLE, *sorted(WORKFLOWS.glob("*.json"))):  # in others, inputs that grow have grown
        for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
            shape = {name: copy.deepcopy(node[name]) for name in kept if name in node}
            shape["properties"].pop("models", None)
            for entry in shape["inputs"]:
                entry["link"] = None
            for entry in shape["outputs"]:
                entry["links"] = None
            shapes.setdefault(node["type"], shape)
    return shapes
