"""The workflow files: written by their generator, and between them every node with every value of every combo."""

import json
from pathlib import Path
from typing import Any

import pytest

from legacy.facts import FACTS
from legacy.make_workflows.__main__ import FOLDER, files

FEWEST = 20
SAVED = sorted(path for path in FOLDER.glob("*.json") if not path.name.endswith(".api.json"))

each_workflow = pytest.mark.parametrize("path", SAVED, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def by_name(node: dict[str, Any]) -> dict[str, Any]:
    """Widget values of a saved node by the name that belongs to their place."""
    names = [item.name for item in FACTS[node["type"]].widgets]
    return dict(zip(names, node.get("widgets_values", []), strict=True))


def test_they_are_what_the_generator_writes():
    assert {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()} == dict(files())


def test_there_are_enough_in_both_forms():
    assert len(SAVED) >= FEWEST
    assert [path.name for path in SAVED if not path.with_suffix(".api.json").exists()] == []


def test_every_node_and_every_value_of_every_combo_is_there():
    nodes = [node for path in SAVED for node in read(path)["nodes"] if node["type"] in FACTS]
    assert {node["type"] for node in nodes} == set(FACTS)
    used = {(node["type"], name, value) for node in nodes for name, value in by_name(node).items() if value is not True}
    wanted = {
        (node_id, item.name, option)
        for node_id, facts in FACTS.items()
        for item in facts.inputs
        for option in item.options or ()
    }
    assert wanted - used == set()


def test_every_socket_is_linked_somewhere():
    linked = {
        (node["type"], entry["name"])
        for path in SAVED
        for node in read(path)["nodes"]
        for entry in node["inputs"]
        if entry["link"] is not None
    }
    sockets = {(node_id, item.name) for node_id, facts in FACTS.items() for item in facts.inputs if not item.is_widget}
    assert sockets - linked == set()


@each_workflow
def test_values_of_the_two_forms_agree(path: Path):
    prompt = read(path.with_suffix(".api.json"))
    for node in read(path)["nodes"]:
        given = prompt[str(node["id"])]
        assert given["class_type"] == node["type"]
        links = {entry["name"] for entry in node["inputs"] if entry["link"] is not None}
        assert {name for name, value in given["inputs"].items() if isinstance(value, list)} == links
        if node["type"] in FACTS:
            values = {name: value for name, value in by_name(node).items() if name not in links}
            assert values == {name: value for name, value in given["inputs"].items() if name not in links}
