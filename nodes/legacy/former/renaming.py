"""Prompts of older versions, as other programs and scripts post them: ids that became others, widgets that came later.

What became what stands in `web/former.json`, which `web/former.js` reads too: it does the same to files that ComfyUI's
page opens. A row is

    {"id": as saved, "has": an input by which the old form is told from the later one, "becomes": id}

and counts only where its id, or its id with that input, belongs to no installed node.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

from server import PromptServer
from typing_extensions import NotRequired

import nodes as comfy_nodes  # ComfyUI's own module of this name

TABLE = Path(__file__).resolve().parents[2] / "web" / "former.json"


class Row(TypedDict):
    """See above."""

    id: str
    has: NotRequired[str]
    becomes: str


@lru_cache
def rows() -> tuple[Row, ...]:
    """The table."""
    return tuple(json.loads(TABLE.read_text(encoding="utf-8")))


def rename_in_prompts() -> None:
    """Have ComfyUI call `renew` with every prompt, before it validates it."""
    server = getattr(PromptServer, "instance", None)
    if server is not None:
        server.add_on_prompt_handler(renew)


def renew(body: dict[str, Any]) -> dict[str, Any]:
    """The body of a request, its prompt brought up to date in place; what is no prompt is left to ComfyUI."""
    prompt = body.get("prompt")
    for node in prompt.values() if isinstance(prompt, dict) else ():
        if isinstance(node, dict) and isinstance(node.get("inputs"), dict) and isinstance(node.get("class_type"), str):
            _renew(node)
    return body


def _renew(node: dict[str, Any]) -> None:
    inputs = node["inputs"]
    for row in rows():
        if row["id"] == node["class_type"] and _is_old(row, inputs):
            node["class_type"] = row["becomes"]
    if node["class_type"] in {row["becomes"] for row in rows()}:
        _fill(node["class_type"], inputs)


def _is_old(row: Row, inputs: Mapping[str, Any]) -> bool:
    told_by, installed = row.get("has"), _groups(row["id"])
    if row["becomes"] not in comfy_nodes.NODE_CLASS_MAPPINGS:
        return False
    if told_by is None:
        return installed is None
    return told_by in inputs and not any(told_by in group for group in installed or ())


def _fill(node_id: str, inputs: dict[str, Any]) -> None:
    """Give widgets that came later their defaults, as the page does when it opens an older file."""
    required, *_ = _groups(node_id) or ({},)
    for name, entry in required.items():
        detail = entry[1] if len(entry) > 1 else None
        if name not in inputs and isinstance(detail, dict) and "default" in detail:
            inputs[name] = detail["default"]


def _groups(node_id: str) -> tuple[Mapping[str, Any], ...] | None:
    """Required and optional inputs of an installed node; None if there is none of this id."""
    installed = comfy_nodes.NODE_CLASS_MAPPINGS.get(node_id)
    if installed is None:
        return None
    described = installed.INPUT_TYPES()
    return described.get("required", {}), described.get("optional", {})
