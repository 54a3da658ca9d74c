"""Prompts of older versions: ids that became others, forms told apart by an input, widgets that came later."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from legacy.facts import FACTS
from legacy.former_facts import FORMER
from support import comfy_host

pytestmark = pytest.mark.smoke
LINK = ["1", 0]
ENCODER = {
    "class_type": "IPAdapterEncoder",
    "inputs": {
        "ipadapter_plus": False,
        "noise": 0.3,
        "weight_1": 0.9,
        "weight_2": 0,
        "weight_3": 0.8,
        "weight_4": 0,
        "clip_vision": LINK,
        "image_1": LINK,
    },
}
ADVANCED = {"weight": 0.4, "weight_type": "linear", "combine_embeds": "concat", "start_at": 0, "end_at": 1}


@pytest.fixture(scope="module")
def renaming(base_directory: Path) -> Any:
    return comfy_host.pack("nodes.legacy.former.renaming")


@pytest.fixture
def renewed(renaming: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """One node as the server takes it."""

    def renew(node: dict[str, Any]) -> dict[str, Any]:
        return renaming.renew({"prompt": {"7": copy.deepcopy(node)}})["prompt"]["7"]

    return renew


@contextmanager
def another_pack(node_id: str, *inputs: str) -> Iterator[None]:
    """A node of an id as a pack would register it."""
    import nodes

    described = {"required": dict.fromkeys(inputs, ("IMAGE",))}
    before = nodes.NODE_CLASS_MAPPINGS.get(node_id)
    nodes.NODE_CLASS_MAPPINGS[node_id] = type(node_id, (), {"INPUT_TYPES": classmethod(lambda _: described)})
    try:
        yield
    finally:
        nodes.NODE_CLASS_MAPPINGS.pop(node_id)
        if before is not None:
            nodes.NODE_CLASS_MAPPINGS[node_id] = before


def test_the_table_names_nodes_that_are_here(renaming: Any) -> None:
    import nodes

    rows = renaming.rows()
    assert all(set(row) <= {"id", "has", "becomes"} for row in rows)
    assert {row["becomes"] for row in rows} <= nodes.NODE_CLASS_MAPPINGS.keys()
    assert len({(row["id"], row.get("has")) for row in rows}) == len(rows)
    for row in rows:
        is_told_apart = "has" in row
        assert (row["id"] in nodes.NODE_CLASS_MAPPINGS) == is_told_apart, row
        if is_told_apart:
            later, former = (FACTS | FORMER)[row["id"]], FORMER[row["becomes"]]
            assert row["has"] in {item.name for item in former.inputs} - {item.name for item in later.inputs}


def test_every_node_of_the_copy_has_its_row(renaming: Any) -> None:
    assert {row["id"]: row["becomes"] for row in renaming.rows() if row["id"].endswith("V2")} == {
        f"{node_id}V2": node_id for node_id in FACTS
    }


def test_the_first_encoder_is_told_from_todays(renewed: Callable) -> None:
    assert renewed(ENCODER) == {**ENCODER, "class_type": "IPAdapterEncoder2023"}
    today = {"class_type": "IPAdapterEncoder", "inputs": {"ipadapter": LINK, "image": LINK, "weight": 1.0}}
    assert renewed(today) == today


def test_the_first_apply_node_is_told_from_the_later_one(renewed: Callable) -> None:
    first = {"model": LINK, "ipadapter": LINK, "clip_vision_output": LINK, "weight": 1.0}
    assert renewed({"class_type": "IPAdapterApply", "inputs": first})["class_type"] == "IPAdapterApply2023"
    later = {"model": LINK, "ipadapter": LINK, "clip_vision": LINK, "image": LINK, "weight": 1.0}
    assert renewed({"class_type": "IPAdapterApply", "inputs": later})["class_type"] == "IPAdapterApply"


def test_a_copys_node_becomes_the_original_and_gets_what_came_later(renewed: Callable) -> None:
    given = renewed({"class_type": "IPAdapterAdvancedV2", "inputs": {"model": LINK, **ADVANCED}})
    assert given == {
        "class_type": "IPAdapterAdvanced",
        "inputs": {"model": LINK, **ADVANCED, "embeds_scaling": "V only"},
    }


def test_widgets_that_came_later_get_their_defaults_and_nothing_else_is_filled_in(renewed: Callable) -> None:
    given = renewed({"class_type": "IPAdapterAdvanced", "inputs": {"model": LINK, **ADVANCED}})
    assert given["inputs"] == {"model": LINK, **ADVANCED, "embeds_scaling": "V only"}
    for node in (
        {"class_type": "IPAdapterModelLoader", "inputs": {}},  # a file is a choice
        {"class_type": "KSampler", "inputs": {"model": LINK}},
        {"class_type": "NobodyKnows", "inputs": {}},
    ):
        assert renewed(node) == node


def test_installed_nodes_stay_what_they_are(renewed: Callable) -> None:
    """Such as those of an IPAdapter_plus of before March 2024, or of the copy."""
    with another_pack("IPAdapterEncoder", "clip_vision", "image_1"), another_pack("IPAdapterAdvancedV2", "model"):
        assert renewed(ENCODER) == ENCODER
        copied = {"class_type": "IPAdapterAdvancedV2", "inputs": {"model": LINK}}
        assert renewed(copied) == copied


@pytest.mark.parametrize("body", [{}, {"prompt": None}, {"prompt": {"1": None, "2": {"class_type": "IPAdapterV2"}}}])
def test_what_is_no_prompt_is_left_to_comfyui(renaming: Any, body: dict[str, Any]) -> None:
    assert renaming.renew(copy.deepcopy(body)) == body


@pytest.mark.parametrize("strange", [[], {}, 7, None], ids=repr)
def test_a_strange_node_does_not_keep_the_others_from_becoming_todays(renaming: Any, strange: Any) -> None:
    prompt = {"1": {"class_type": strange, "inputs": {}}, "2": {"class_type": "IPAdapterV2", "inputs": {}}}
    renewed = renaming.renew({"prompt": prompt})["prompt"]
    assert renewed["1"] == {"class_type": strange, "inputs": {}}
    assert renewed["2"]["class_type"] == "IPAdapter"
