"""What people read names nodes by the titles on the screen, never by their ids; the core names no node at all."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import comfy_host

CORE, NODES = comfy_host.ROOT / "ipadapter_core", comfy_host.ROOT / "nodes"
PAGES = [*sorted((NODES / "web" / "docs").glob("*.md")), *sorted((comfy_host.ROOT / "docs").glob("*.md"))]
# ComfyUI shows a node that is missing by its id
MISSING_NODES = ("\n## Nodes that IPAdapter_plus dropped\n", "\n## Nodes of packs for FLUX, SD3 and Anima\n")
ON_HUB = "published.py"  # where files lie in repositories, whose folders may be called as inputs are
OF_OTHERS = {"clip_vision", "base_model"}  # inputs whose names are also a model folder of ComfyUI, and keys of peft


@pytest.fixture(scope="module")
def schemas(base_directory: Path) -> list[Any]:
    """Of every node of the pack."""
    import nodes

    ids = {*(name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("IPA")), "PrepImageForClipVision"}
    return [comfy_host.schema(node_id) for node_id in sorted(ids)]


@pytest.fixture(scope="module")
def ids(schemas: list[Any]) -> re.Pattern[str]:
    """Ids of our nodes and of ComfyUI's own that are no titles."""
    import nodes

    titles = {schema.node_id: schema.display_name for schema in schemas}
    titles |= {name: title for name, title in nodes.NODE_DISPLAY_NAME_MAPPINGS.items() if re.search("[a-z][A-Z]", name)}
    names = {name for name, title in titles.items() if name != title}
    assert {"IPAApply", "IPAdapterMS", "PrepImageForClipVision", "LoadImage"} <= names
    return words(names)


def words(names: set[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w/])({'|'.join(sorted(map(re.escape, names)))})(?!\w)")


def texts(folder: Path, *, docstrings: bool) -> Iterator[tuple[str, str]]:
    """Every text in the source of a folder, and where it stands; names that are nothing but a name left out."""
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        first = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node) is not None
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or node.value.isidentifier():
                continue
            if docstrings or id(node) not in first:
                yield f"{path.relative_to(comfy_host.ROOT)}:{node.lineno}", node.value


def named(found: Iterator[tuple[str, str]], names: re.Pattern[str]) -> list[str]:
    return [f"{where} names {match[0]}" for where, text in found for match in names.finditer(text)]


def test_messages_of_the_nodes_name_no_id(ids: re.Pattern[str]) -> None:
    assert len(list(texts(NODES, docstrings=False))) > 100
    assert named(texts(NODES, docstrings=False), ids) == []


def test_messages_of_the_nodes_name_inputs_as_the_screen_does(schemas: list[Any]) -> None:
    shown: dict[str, set[str]] = {}
    for schema in schemas:
        for item in schema.inputs:
            shown.setdefault(item.id, set()).add(item.display_name or item.id)
    hidden = {name for name, titles in shown.items() if name not in titles}
    assert {"image_encoder", "start_percent", "layer_preset", "negative_image"} <= hidden
    assert named(texts(NODES, docstrings=False), words(hidden)) == []


def test_schemas_name_no_id(schemas: list[Any], ids: re.Pattern[str]) -> None:
    def shown(schema: Any) -> Iterator[tuple[str, str]]:
        yield f"{schema.node_id}: description", f"{schema.display_name}. {schema.description}"
        for item in (*schema.inputs, *schema.outputs):
            template = getattr(getattr(item, "template", None), "input", None)
            for part in filter(None, (item, template)):
                yield f"{schema.node_id}: {part.id}", " ".join(filter(None, (part.display_name, part.tooltip)))

    everything = [entry for schema in schemas for entry in shown(schema)]
    assert len(everything) > len(schemas)
    assert named(iter(everything), ids) == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_name_no_id(ids: re.Pattern[str], path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for heading in MISSING_NODES:
        before, _, section = text.partition(heading)
        text = before + "".join(section.partition("\n## ")[1:])
    assert named(iter([(path.name, text)]), ids) == []


def test_the_core_names_no_node_and_no_input_of_one(schemas: list[Any], ids: re.Pattern[str]) -> None:
    titles = {title for title in (schema.display_name for schema in schemas) if " " in title}
    # its docstrings name its own arguments
    inputs = {item.id for schema in schemas for item in schema.inputs if "_" in item.id} - OF_OTHERS
    everything = list(texts(CORE, docstrings=True))
    hits = [hit for names in (ids, words(titles)) for hit in named(iter(everything), names)]
    hits += named((text for text in texts(CORE, docstrings=False) if ON_HUB not in text[0]), words(inputs))
    assert "\n".join(hits) == ""
