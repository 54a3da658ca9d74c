"""Every shipped workflow: it fits the nodes, ComfyUI's page opens it, it draws; comfy-cli executes one."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfy_cli.workflow_to_api import convert_ui_to_api
from PIL import Image

from demo.client import Client, Prompt
from demo.scenes import ADAPTER as DEMO_ADAPTER
from demo.scenes import ENLARGED, SCENES
from demo.server import HOST, ROOT, ComfyServer
from support.browser import Page
from support.graphs import TINY

pytest_plugins = ["support.server"]

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
SIMPLE = ROOT / "workflows" / "ipa_simple.json"
# of diffusion transformers, with the tiny model they are drawn with
TRANSFORMERS = {
    "Anima image prompt": "Anima",
    "Chroma image prompt": "Chroma",
    "FLUX image prompt": "FLUX",
    "FLUX image prompt (InstantX)": "FLUX",
    "SD3.5 image prompt": "SD3.5",
}
NOTES = {"Note", "MarkdownNote"}
# a pickle cannot say that its heads are tiny
RENAMED = {"instantx-flux-ip-adapter.bin": "instantx-flux-ip-adapter.safetensors"}
BYPASSED = 4
SIZE = 64
DEMO = {scene.name: (len(scene.labels), SIZE * ENLARGED) for scene in SCENES}
"""Number and size of pictures of the demo's workflows."""
TITLE = 30  # pixels of a node's title, which stands above its position

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def nodes_of(workflow: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [node for node in workflow["nodes"] if node["type"] == kind]


def real_nodes(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in workflow["nodes"] if node["type"] not in NOTES]


def widget_values(workflow: dict[str, Any]) -> dict[int, list[Any]]:
    return {node["id"]: node.get("widgets_values", []) for node in workflow["nodes"]}


def made_small(workflow: dict[str, Any], prefix: str | None = None) -> dict[str, Any]:
    """For the tiny models: other names of adapters, small pictures, few steps.

    Args:
        prefix: of the saved pictures' names.
    """
    for node in [*nodes_of(workflow, "EmptyLatentImage"), *nodes_of(workflow, "EmptySD3LatentImage")]:
        node["widgets_values"][:2] = [SIZE, SIZE]
    for node in nodes_of(workflow, "KSampler"):
        node["widgets_values"][2] = 2  # steps
    for node in nodes_of(workflow, "IPALoadAdapter"):
        if node["widgets_values"][0] != DEMO_ADAPTER:
            node["widgets_values"][0] = f"{TINY}{RENAMED.get(node['widgets_values'][0], node['widgets_values'][0])}"
    for node in nodes_of(workflow, "SaveImage"):
        node["widgets_values"][0] = prefix or node["widgets_values"][0]
    return workflow


def on_tiny_models(prompt: Prompt, kind: str) -> Prompt:
    """A prompt for a diffusion transformer, with what stands for its loaders, text encoders and VAE in the test's server."""
    stand_ins = {
        "CheckpointLoaderSimple": lambda _given: ("TinyTransformer", {"kind": kind}),
        "UNETLoader": lambda _given: ("TinyTransformer", {"kind": kind}),
        "CLIPTextEncode": lambda given: ("TinyPrompt", {"text": given["text"], "kind": kind}),
        "VAEDecode": lambda given: ("TinyDecode", {"samples": given["samples"]}),
    }
    changed: Prompt = {}
    for name, node in prompt.items():
        stand_in = stand_ins.get(node["class_type"])
        if stand_in is not None:
            class_type, inputs = stand_in(node["inputs"])
            changed[name] = {"class_type": class_type, "inputs": inputs}
        elif node["class_type"] not in ("CLIPLoader", "VAELoader"):
            changed[name] = node
    return changed


def pictures(client: Client, prompt: Prompt) -> list[np.ndarray]:
    """What a prompt saves."""
    run = client.run(prompt)
    if "not with this server" in run.error:
        pytest.skip(run.error)
    assert run.end == "execution_success", run.error
    saves = [node for node in run.outputs if prompt[node]["class_type"] == "SaveImage"]
    return [np.asarray(Image.open(io.BytesIO(content))) for node in saves for content in client.files(run, node)]


def test_nothing_else_lies_beside_the_workflows():
    assert len(WORKFLOWS) == 6 + len(SCENES) + len(TRANSFORMERS)
    pictures = {path.stem for path in (ROOT / "workflows").iterdir() if path.suffix == ".jpg"}
    assert pictures == set(TRANSFORMERS)
    assert {path.suffix for path in (ROOT / "workflows").iterdir()} == {".json", ".jpg"}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_thumbnails_are_small_pictures(name: str):
    path = ROOT / "workflows" / f"{name}.jpg"
    assert path.stat().st_size < 100_000
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert min(picture.size) >= 256


@pytest.mark.smoke
@each_workflow
def test_workflow_fits_the_nodes(path: Path, object_info: Any):
    known, workflow = object_info, read(path)
    for node in real_nodes(workflow):
        info = known[node["type"]]
        schema = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        inputs = {entry["name"].partition(".")[0]: entry for entry in node["inputs"]}
        assert inputs.keys() - {"upload"} == schema.keys(), node["type"]
        widgets = [entry["name"] for entry in node["inputs"] if "widget" in entry]
        details = [schema[name][1] for name in widgets if len(schema.get(name, ())) > 1]
        extra = sum(bool(detail.get("control_after_generate")) for detail in details)
        assert len(node.get("widgets_values", [])) == len(widgets) + extra, node["type"]
        linked = [(index, entry["type"]) for index, entry in enumerate(node["outputs"]) if entry["links"]]
        assert [(index, info["output"][index]) for index, _ in linked] == linked
        if node["type"].startswith("IPA"):  # core nodes gain outputs from version to version, ours may not
            assert [entry["type"] for entry in node["outputs"]] == info["output"]
    module = {"custom_nodes", "nodes", "comfy_extras"}
    assert {known[node["type"]]["python_module"].partition(".")[0] for node in real_nodes(workflow)} <= module


@each_workflow
def test_notes_name_every_file(path: Path):
    workflow = read(path)
    note = "\n".join(node["widgets_values"][0] for kind in NOTES for node in nodes_of(workflow, kind))
    kinds = ("CheckpointLoaderSimple", "UNETLoader", "CLIPLoader", "VAELoader", "IPALoadAdapter")
    loaders = [node for kind in kinds for node in nodes_of(workflow, kind)]
    assert loaders
    assert [node["widgets_values"][0] for node in loaders if node["widgets_values"][0] not in note] == []


@each_workflow
def test_no_two_nodes_overlap(path: Path):
    boxes = [(*node["pos"], *node["size"]) for node in read(path)["nodes"]]
    for index, (left, top, width, height) in enumerate(boxes):
        for x, y, other_width, other_height in boxes[:index]:
            apart = left >= x + other_width or x >= left + width
            assert apart or top - TITLE >= y + other_height or y - TITLE >= top + height


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    # between them those without models of their own have every node
    [pytest.param(path, id=path.stem, marks=[pytest.mark.smoke] * (path.stem not in DEMO)) for path in WORKFLOWS],
)
def test_it_draws(path: Path, client: Client, object_info: Any):
    prompt = convert_ui_to_api(made_small(read(path)), object_info)
    drawn = pictures(client, on_tiny_models(prompt, TRANSFORMERS[path.stem]) if path.stem in TRANSFORMERS else prompt)
    count, side = DEMO.get(path.stem, (1, SIZE))
    assert [picture.shape for picture in drawn] == [(side, side, 3)] * count
    assert min(picture.std() for picture in drawn) > 1


@pytest.mark.slow
def test_comfy_cli_executes_one(server: ComfyServer, tmp_path: Path):
    """The program that registries and scripts use; its settings and records stay in the test's folder."""
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(made_small(read(SIMPLE), prefix="by comfy-cli")), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("comfy")), "--skip-prompt", "--no-enable-telemetry", "run", "--wait"]
    command += ["--workflow", str(path), "--host", HOST, "--port", str(server.port), "--timeout", "300"]
    environment = os.environ | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["data"]["status"] == "completed"
    (picture,) = server.output.glob("by comfy-cli_*.png")
    assert np.asarray(Image.open(picture)).std() > 1


@pytest.mark.slow
def test_bypassed_apply_equals_strength_zero(client: Client, object_info: Any):
    """Bypassed as the page does it: mode 4 of the node."""
    drawn = []
    for change in ({"mode": BYPASSED}, {"widgets_values": [0.0, 0.0, 1.0, "all"]}, {}):
        workflow = made_small(read(SIMPLE))
        (apply,) = nodes_of(workflow, "IPAApply")
        apply.update(change)
        prompt = convert_ui_to_api(workflow, object_info)
        assert (str(apply["id"]) in prompt) == (change.get("mode") != BYPASSED)
        drawn += pictures(client, prompt)
    bypassed, off, on = drawn
    assert np.array_equal(bypassed, off)
    assert not np.array_equal(bypassed, on)


@pytest.mark.slow
def test_page_opens_each_workflow(page: Page, tmp_path: Path):
    for path in WORKFLOWS:
        workflow = read(path)
        page.evaluate(f"app.loadGraphData({json.dumps(workflow)})")
        page.wait_for(f"app.graph._nodes.length === {len(workflow['nodes'])}")
        unknown = "!(n.type in LiteGraph.registered_node_types)"
        unknown += "" if path.stem in TRANSFORMERS else " || n.has_errors"  # the server has no files of such models
        assert page.evaluate(f"app.graph._nodes.filter(n => {unknown}).map(n => n.type)") == []
        saved = page.evaluate("app.graph.serialize()")
        assert widget_values(saved) == widget_values(workflow)
        assert len(saved["links"]) == len(workflow["links"])
        page.screenshot(tmp_path / f"{path.stem}.png")
