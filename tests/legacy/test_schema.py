"""The 37 ids of IPAdapter_plus as a workflow file finds them: names, order, types, ranges, defaults, combos, outputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from legacy.apply_fixtures import adapter
from legacy.fact_records import Input
from legacy.facts import FACTS
from legacy.running import clip_vision, outputs, random_image
from support import comfy_host

NATIVE = (
    *("IPALoadAdapter", "IPAEncodeImage", "IPACombineTokens", "IPAApply", "IPAApplyImage", "IPALayerWeights"),
    *("IPALoadFaceModel", "IPAEncodeFace", "IPAApplyFaceLora"),
)
DOCS = comfy_host.ROOT / "nodes" / "web" / "docs"
SOCKETS = {"IPADAPTER", "EMBEDS", "INSIGHTFACE", "IPADAPTER_PARAMS", "WEIGHTS_STRATEGY"}
"""Types of IPAdapter_plus' own; the native nodes have others, so that nobody plugs one into the other."""

pytest_plugins = ["support.server"]

each_node = pytest.mark.parametrize("node_id", FACTS)
pytestmark = pytest.mark.smoke


def pipeline(folder: Path) -> dict[str, Any]:
    """An IPADAPTER with its image encoder, as every node takes it."""
    raw = adapter(folder, "sdxl", "plus").payload
    return {"ipadapter": {"file": "a", "model": raw}, "clipvision": {"file": "b", "model": clip_vision()}}


def read_input(name: str, entry: tuple[Any, ...], expected: Input) -> Input:
    """An announced input in the form of the facts; what the facts leave open is taken over from them."""
    kind, detail = entry[0], entry[1] if len(entry) > 1 else {}
    is_combo = isinstance(kind, list)  # programs know no other form of a choice
    options = kind if is_combo else None
    return Input(
        name,
        "COMBO" if is_combo else kind,
        detail.get("default", options[0] if is_combo and options else None) if expected.default is not None else None,
        detail.get("min"),
        detail.get("max"),
        detail.get("step") if expected.step is not None else None,
        tuple(options) if expected.options is not None else None,
        bool(detail.get("multiline")),
        expected.optional,
    )


def test_there_are_as_many_as_there_were():
    assert len(FACTS) == 37


@each_node
def test_inputs_are_those_of_the_facts_page(object_info: Any, node_id: str) -> None:
    info, facts = object_info[node_id], FACTS[node_id]
    for group in ("required", "optional"):
        wanted = [item for item in facts.inputs if item.optional == (group == "optional")]
        given = info["input"].get(group, {})
        assert list(given) == [item.name for item in wanted]
        assert [read_input(item.name, given[item.name], item) for item in wanted] == wanted


@each_node
def test_widgets_stand_in_the_order_they_are_saved_in(base_directory: Path, node_id: str) -> None:
    """A file holds values by position: required widgets, then optional ones."""
    flags = [item.optional for item in FACTS[node_id].inputs]
    assert flags == sorted(flags)
    assert [item.id for item in comfy_host.schema(node_id).inputs] == [item.name for item in FACTS[node_id].inputs]


@each_node
def test_no_widget_comes_with_a_second_value(object_info: Any, node_id: str) -> None:
    """A control after generation would shift every value saved behind it."""
    info = object_info[node_id]["input"]
    details = [entry[1] for group in info.values() for entry in group.values() if len(entry) > 1]
    assert [detail for detail in details if detail.get("control_after_generate") or detail.get("forceInput")] == []


@each_node
def test_outputs_are_those_of_the_facts_page(object_info: Any, node_id: str) -> None:
    info, facts = object_info[node_id], FACTS[node_id]
    assert list(zip(info["output"], info["output_name"], strict=True)) == list(facts.outputs)
    assert not any(info["output_is_list"])
    assert info["output_node"] == facts.is_output


@each_node
def test_names_are_those_of_the_facts_page(object_info: Any, node_id: str) -> None:
    info, facts = object_info[node_id], FACTS[node_id]
    assert (info["name"], info["display_name"], info["category"]) == (node_id, facts.display_name, facts.category)


@each_node
def test_it_is_deprecated_and_names_the_native_way(base_directory: Path, object_info: Any, node_id: str) -> None:
    info = object_info[node_id]
    assert info["deprecated"]
    titles = [title for name in NATIVE if (title := comfy_host.schema(name).display_name) in info["description"]]
    assert titles or "docs/migrating.md" in info["description"]


@each_node
def test_texts_say_titles_of_nodes_that_stand_on_the_screen(base_directory: Path, node_id: str) -> None:
    node = comfy_host.schema(node_id)
    texts = [node.description, *(item.tooltip for item in (*node.inputs, *node.outputs))]
    assert [text for text in texts for name in NATIVE if name in text] == []


@each_node
def test_search_finds_the_native_nodes_first(object_info: Any, node_id: str) -> None:
    """Who types an old name meets the native node, which has that name among its aliases."""
    assert not object_info[node_id].get("search_aliases")


@each_node
def test_execute_takes_what_the_schema_offers(base_directory: Path, model: Callable, node_id: str) -> None:
    """By calling it, because some hand on what they are given. Python names the first input that does not fit."""
    real = {"model": model("sdxl"), "ipadapter": pipeline(base_directory), "image": random_image(1, 30, 30)}
    given = {item.name: real.get(item.name, item.default) for item in FACTS[node_id].inputs}
    required = {item.name: given[item.name] for item in FACTS[node_id].inputs if not item.optional}
    for inputs in (given, required):
        with pytest.raises(TypeError, match="unexpected keyword argument 'stray'"):
            outputs(node_id, **inputs, stray=None)


@each_node
def test_every_input_and_output_has_a_tooltip(base_directory: Path, node_id: str) -> None:
    node = comfy_host.schema(node_id)
    assert [item.id for item in (*node.inputs, *node.outputs) if not item.tooltip] == []
    numbers = [item for item in node.inputs if item.get_io_type() in ("FLOAT", "INT")]
    assert [item.id for item in numbers if "neutral" not in item.tooltip.lower()] == []


@each_node
def test_help_page_describes_every_input(base_directory: Path, node_id: str) -> None:
    page = (DOCS / f"{node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {FACTS[node_id].display_name}\n")
    for heading in ("## What it did", "## Inputs", "## Native way", "## What differs"):
        assert heading in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    described = {name: line for line in rows for name in line.split("|")[1].replace("`", "").replace(",", " ").split()}
    for item in FACTS[node_id].inputs:
        assert item.name in described, item.name
        cells = [cell.strip() for cell in described[item.name].strip("|").split("|")]
        assert len(cells) == 2
        assert len(cells[1]) > 10, item.name


def test_their_sockets_are_not_those_of_the_native_nodes(base_directory: Path) -> None:
    native = {
        item.get_io_type()
        for name in NATIVE
        for item in (*comfy_host.schema(name).inputs, *comfy_host.schema(name).outputs)
    }
    assert native & SOCKETS == set()
