"""A workflow in both forms it is shared in: as the page of 2024 saved it, and as the server takes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from legacy.fact_records import Facts, Input
from legacy.facts import FACTS
from legacy.former_facts import FORMER

from .core_nodes import CORE, EXTRA_VALUES

COLUMN, ROW, WIDTH = 400, 320, 315  # pixels
PER_COLUMN = 6
Value = Any


def facts_of(kind: str) -> Facts:
    return (FACTS | FORMER | CORE)[kind]


@dataclass(frozen=True)
class Output:
    """An output of a node on the page."""

    node: int
    slot: int
    type: str


@dataclass
class Node:
    """A node on the page: links by input, and every widget's value whether it is linked or not."""

    number: int
    kind: str
    links: dict[str, Output]
    values: dict[str, Value]

    def __getitem__(self, name: str) -> Output:
        """An output by its name, or by its type where it has none of its own."""
        outputs = facts_of(self.kind).outputs
        slot = [output_name for _, output_name in outputs].index(name)
        return Output(self.number, slot, outputs[slot][0])


@dataclass
class Page:
    """A workflow that grows node by node."""

    name: str
    nodes: list[Node] = field(default_factory=list)

    def add(self, kind: str, **inputs: Value) -> Node:
        """A node; an input is an `Output`, a widget's value, or left out, which leaves its default.

        Raises:
            ValueError: an input the node does not have, or a required one that is missing.
        """
        facts = facts_of(kind)
        unknown = inputs.keys() - {item.name for item in facts.inputs}
        missing = [item.name for item in facts.inputs if not (item.is_widget or item.optional or item.name in inputs)]
        if unknown or missing:
            raise ValueError(f"{kind}: unknown {sorted(unknown)}, missing {missing}")
        links = {name: value for name, value in inputs.items() if isinstance(value, Output)}
        values = {item.name: _value(item, inputs) for item in facts.widgets}
        node = Node(len(self.nodes) + 1, kind, links, values)
        self.nodes.append(node)
        return node

    def saved(self) -> dict[str, Any]:
        """The file: widget values by position, and an input of its own for a widget only where it is linked."""
        nodes, links = [], []
        for node in self.nodes:
            inputs = []
            for item in facts_of(node.kind).inputs:
                if item.is_widget and item.name not in node.links:
                    continue
                entry: dict[str, Any] = {"name": item.name, "type": item.type, "link": None}
                if item.is_widget:
                    entry["widget"] = {"name": item.name}
                if item.name in node.links:
                    source = node.links[item.name]
                    entry["link"] = len(links) + 1
                    links.append([entry["link"], source.node, source.slot, node.number, len(inputs), source.type])
                inputs.append(entry)
            nodes.append(self._shape(node, inputs))
        for node in nodes:
            for slot, output in enumerate(node["outputs"]):
                output["links"] = [link[0] for link in links if link[1:3] == [node["id"], slot]] or None
        return {
            "last_node_id": len(nodes),
            "last_link_id": len(links),
            "nodes": nodes,
            "links": links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }

    def prompt(self) -> dict[str, Any]:
        """The same as the server takes it: inputs by name."""
        return {
            str(node.number): {
                "inputs": {
                    **{name: value for name, value in node.values.items() if name not in node.links},
                    **{name: [str(source.node), source.slot] for name, source in node.links.items()},
                },
                "class_type": node.kind,
                "_meta": {"title": facts_of(node.kind).display_name},
            }
            for node in self.nodes
        }

    @staticmethod
    def _shape(node: Node, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        facts, index = facts_of(node.kind), node.number - 1
        widgets: list[Value] = []
        for item in facts.widgets:
            widgets += [node.values[item.name], *EXTRA_VALUES.get((node.kind, item.name), ())]
        return {
            "id": node.number,
            "type": node.kind,
            "pos": [index // PER_COLUMN * COLUMN, index % PER_COLUMN * ROW],
            "size": {"0": WIDTH, "1": 60 + 24 * len(facts.inputs)},
            "flags": {},
            "order": index,
            "mode": 0,
            "inputs": inputs,
            "outputs": [{"name": name, "type": kind, "links": None, "shape": 3} for kind, name in facts.outputs],
            "properties": {"Node name for S&R": node.kind},
            **({"widgets_values": widgets} if widgets else {}),
        }


def _value(item: Input, inputs: Mapping[str, Value]) -> Value:
    given = inputs.get(item.name)
    if given is not None and not isinstance(given, Output):
        return given
    if item.default is None:
        raise ValueError(f"{item.name} needs a value")
    return item.default
