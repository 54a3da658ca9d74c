"""docs/migrating.md names every old node, the native nodes there are, and the presets that old weight types become."""

import inspect
import re
from pathlib import Path

from ipadapter_core.legacy.weight_types import WEIGHT_TYPES
from ipadapter_core.strength.presets import PRESETS
from legacy.facts import FACTS
from legacy.facts import WEIGHT_TYPES as OLD_WEIGHT_TYPES
from legacy.former_facts import FORMER, SCALINGS
from legacy.pack_facts import PACKS
from support import comfy_host

TEXT = (comfy_host.ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")


def table(heading: str) -> list[tuple[str, str]]:
    """The first two cells of each row below a heading."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return [(row[0].strip(), row[1].strip()) for row in rows[1:]]


def test_every_old_node_has_a_way() -> None:
    named = ", ".join(old for old, _ in table("Which native node does it"))
    short = [facts.display_name.removeprefix("IPAdapter ") for facts in FACTS.values()]
    assert [name for name in short if "Batch" not in name and name not in named] == []
    assert "every *Batch* node" in named


def test_the_native_ways_exist(base_directory: Path) -> None:
    titles = {node.define_schema().display_name for node in comfy_host.pack("nodes").NODES}
    named = re.findall(r"\*((?:[A-Z][\w-]+ )[^*]*)\*", " ".join(way for _, way in table("Which native node does it")))
    assert named
    assert set(named) <= titles


def test_weight_types_become_their_presets() -> None:
    rows = [(name.strip(), preset) for names, preset in table("Weight types") for name in names.split(",")]
    stated = {name: name if preset == "the same names" else preset for name, preset in rows}
    assert {name: stated[name] for name in OLD_WEIGHT_TYPES} == {
        name: WEIGHT_TYPES[name].preset for name in OLD_WEIGHT_TYPES
    }
    assert set(stated.values()) <= set(PRESETS)


def test_the_calls_are_those_of_the_classes(base_directory: Path) -> None:
    """By the first node of each row: its method, its arguments in their order."""
    ids = {facts.display_name: node_id for node_id, facts in FACTS.items()}
    section = TEXT.split("\n## Programs and packs\n")[1].split("\n## ")[0]
    rows = re.findall(r"^  \| (IPAdapter[^,|]*?)(?:,[^|]*)? \| `(\w+)\(([^)]*)\)`", section, re.MULTILINE)
    assert len(rows) == 6
    for title, method, arguments in rows:
        node = comfy_host.node(ids[title])
        assert method == node.FUNCTION
        stated = [argument.partition("=")[0].strip() for argument in arguments.split(",")]
        assert list(inspect.signature(getattr(node(), method)).parameters) == stated, title


def test_every_dropped_node_is_named_with_what_it_becomes(base_directory: Path) -> None:
    rows = table("Nodes that IPAdapter_plus dropped")
    told = comfy_host.pack("nodes.legacy.former.renaming").rows()
    saved_as = {row["becomes"]: row["id"] for row in told if "has" in row}
    ids = {saved_as.get(node_id, node_id) for node_id in FORMER}
    assert ids <= set(re.findall(r"`(\w+)`", " ".join(missing for missing, _ in rows)))
    titles = {facts.display_name for facts in (FACTS | FORMER).values()}
    assert set(re.findall(r"\*([^*]+)\*", " ".join(here for _, here in rows))) <= titles
    section = TEXT.split("\n## Nodes that IPAdapter_plus dropped\n")[1].split("\n## ")[0].replace("\n", " ")
    assert [name for name, scaling in SCALINGS.items() if f"*{name}* is *{scaling}*" not in section] == []


def test_nodes_of_other_packs_are_named_with_their_inputs_and_are_here(base_directory: Path) -> None:
    import nodes

    section = TEXT.split("\n## Nodes of packs for FLUX, SD3 and Anima\n")[1]
    rows = re.findall(r"^\| ([\w-]+/[\w-]+) \| `(\w+)` \| (.*?) \| \*(.*?)\* \|$", section, re.MULTILINE)
    assert {node_id for _, node_id, *_ in rows} == set(PACKS)
    assert set(PACKS) <= nodes.NODE_CLASS_MAPPINGS.keys()
    titles = {node.define_schema().display_name for node in comfy_host.pack("nodes").NODES}
    for _, node_id, inputs, way in rows:
        assert set(re.findall(r"\b[a-z_]+\b", re.sub(r"\(.*?\)", "", inputs))) - {"or"} == {
            item.name for item in PACKS[node_id].inputs
        }, node_id
        assert way in titles
