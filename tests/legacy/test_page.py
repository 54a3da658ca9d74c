"""ComfyUI's page opens every legacy workflow with its values in place, and queues one."""

import json
from pathlib import Path
from typing import Any

import pytest

from demo.server import ComfyServer
from legacy.facts import FACTS
from legacy.make_workflows.__main__ import FOLDER
from legacy.running import SIDE, STAND_INS
from support.browser import Page

pytest_plugins = ["support.server"]

SAVED = sorted(path for path in FOLDER.glob("*.json") if not path.name.endswith(".api.json"))
QUEUED = FOLDER / "simple.json"
LISTEN = """
window.problems = [];
window.addEventListener("error", event => problems.push(event.message));
window.addEventListener("unhandledrejection", event => problems.push(String(event.reason)));
"""
UNKNOWN = "app.graph._nodes.filter(n => n.has_errors || !(n.type in LiteGraph.registered_node_types)).map(n => n.type)"

pytestmark = pytest.mark.slow


def on_the_server(path: Path) -> dict[str, Any]:
    """A saved workflow with tiny models in place of what the server cannot load, and a small picture."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    for node in workflow["nodes"]:
        node["type"] = STAND_INS.get(node["type"], node["type"])
        node["properties"]["Node name for S&R"] = node["type"]
        if node["type"] == "EmptyLatentImage":
            node["widgets_values"][:2] = [SIDE, SIDE]
        if node["type"] == "KSampler":
            node["widgets_values"][2] = 2  # steps
    return workflow


def values(workflow: dict[str, Any]) -> dict[int, list[Any]]:
    """Widget values of IPAdapter_plus' nodes."""
    return {node["id"]: node.get("widgets_values") or [] for node in workflow["nodes"] if node["type"] in FACTS}


def ends(workflow: dict[str, Any]) -> set[tuple[Any, ...]]:
    """What is linked with what, by names of nodes and inputs."""
    inputs = {node["id"]: [entry["name"] for entry in node["inputs"]] for node in workflow["nodes"]}
    return {(source, slot, target, inputs[target][entry]) for _, source, slot, target, entry, _ in workflow["links"]}


@pytest.mark.parametrize("paths", [pytest.param(SAVED, marks=pytest.mark.long), SAVED[::4]], ids=["all", "some"])
def test_the_page_opens_them_and_queues_one(server: ComfyServer, page: Page, paths: list[Path]) -> None:
    page.evaluate(LISTEN)
    for path in paths:
        workflow = on_the_server(path)
        page.evaluate(f"app.loadGraphData({json.dumps(workflow)})")
        page.wait_for(f"app.graph._nodes.length === {len(workflow['nodes'])}")
        assert page.evaluate(UNKNOWN) == [], path.name
        saved = page.evaluate("app.graph.serialize()")
        assert values(saved) == values(workflow), path.name
        assert ends(saved) == ends(workflow), path.name
    page.evaluate(f"app.loadGraphData({json.dumps(on_the_server(QUEUED))})")
    page.evaluate("app.extensionManager.command.execute('Comfy.QueuePrompt')")  # what the button runs
    shown = f"output?.images?.some(image => image.filename.startsWith('{QUEUED.stem}_'))"
    page.wait_for(f"Object.values(app.nodeOutputs ?? {{}}).some(output => {shown})")
    assert page.evaluate("problems") == []
    assert list(server.output.glob(f"{QUEUED.stem}_*.png"))
