"""Every shipped workflow and app: it fits the nodes, its files can be had, ComfyUI's page opens it, it draws."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comfy_cli.workflow_to_api import convert_ui_to_api
from PIL import Image

from demo.client import Client, Prompt
from demo.scenes import PACKS
from demo.server import HOST, ROOT, ComfyServer
from support import templates
from support.browser import Page
from support.templates import (
    APPS,
    BLUEPRINTS,
    DEMO,
    LOADS_TOKENS,
    MODEL_FILES,
    SAVES_TOKENS,
    SIMPLE,
    SIZE,
    TEMPLATES,
    TRAINS,
    TRANSFORMERS,
    WORKFLOWS,
    nodes_of,
    read,
    real_nodes,
)

pytest_plugins = ["support.server"]

BYPASSED = 4
TITLE = 30  # pixels of a node's title, which stands above its position
WITHOUT_ENCODER = {"ip-adapter-faceid_sd15.bin"}  # it reads a face's embedding
BASES = ("v1-5-pruned-emaonly-fp16.safetensors", "sd_xl_base_1.0.safetensors")
SEARCHED = {  # what the page's search finds first
    "image prompt": "Image prompt",
    "style of": "Style of a picture",
    "composition": "Composition of a picture",
    "face": "Face",
    "left and": "Left and right",
}
LARGEST_PICTURE = 60_000  # bytes

each_template = pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
each_file = pytest.mark.parametrize(
    "path", [*WORKFLOWS, *BLUEPRINTS], ids=lambda path: f"{path.parent.name}-{path.stem}"
)


def widget_values(workflow: dict[str, Any]) -> dict[int, list[Any]]:
    return {node["id"]: node.get("widgets_values", []) for node in workflow["nodes"]}


def pictures(client: Client, prompt: Prompt) -> list[np.ndarray]:
    """What a prompt saves."""
    run = client.run(prompt)
    if "not with this server" in run.error:
        pytest.skip(run.error)
    assert run.end == "execution_success", run.error
    saves = [node for node in run.outputs if prompt[node]["class_type"] in ("SaveImage", "SaveAnimatedWEBP")]
    return [np.asarray(Image.open(io.BytesIO(content))) for node in saves for content in client.files(run, node)]


def files_of(workflow: dict[str, Any]) -> set[str]:
    """Names of the model files that its widgets ask for."""
    nodes = [
        node for node in real_nodes(workflow) if node["type"] != "IPALoadTokens"
    ]  # another template writes its file
    values = (value for node in nodes for value in templates.widgets(node).values())
    return {value for value in values if isinstance(value, str) and value.endswith(MODEL_FILES)}


def models_of(workflow: dict[str, Any]) -> list[dict[str, str]]:
    """What the page offers to download."""
    return [entry for node in real_nodes(workflow) for entry in node["properties"].get("models", ())]


@pytest.mark.parametrize("folder", [TEMPLATES[0].parent, DEMO[0].parent], ids=["pack", "demo"])
def test_each_workflow_has_a_small_picture_and_nothing_else_lies_there(folder: Path):
    files = sorted(path for path in folder.iterdir())
    assert {path.suffix for path in files} == {".json", ".jpg"}
    thumbnails = [path for path in files if path.suffix == ".jpg"]
    assert [path.stem for path in thumbnails] == [path.stem for path in files if path.suffix == ".json"]
    for path in thumbnails:
        assert path.stat().st_size < LARGEST_PICTURE, path.name
        with Image.open(path) as picture:
            assert picture.format == "JPEG"
            assert min(picture.size) >= 256


@pytest.mark.smoke
@each_file
def test_workflow_fits_the_nodes(path: Path, object_info: Any):
    known, workflow = object_info, read(path)
    for node in real_nodes(workflow):
        info = known[node["type"]]
        schema = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        inputs = {entry["name"].partition(".")[0]: entry for entry in node["inputs"]}
        optional = info["input"].get("optional", {}).keys()  # a file may be older than one of them
        assert schema.keys() - optional <= inputs.keys() - {"upload"} <= schema.keys(), node["type"]
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
def test_the_note_names_every_file(path: Path):
    workflow = read(path)
    note = templates.note_of(workflow)
    assert files_of(workflow)
    assert [name for name in files_of(workflow) if name not in note] == []


@pytest.mark.parametrize("path", [*TEMPLATES, *BLUEPRINTS], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_note_has_the_address_of_what_the_page_cannot_download(path: Path):
    workflow = read(path)
    packs = {templates.widgets(node)["face_pack"] for node in nodes_of(workflow, "IPALoadFaceModel")}
    missing = packs | files_of(workflow) - {entry["name"] for entry in models_of(workflow)}
    note = templates.note_of(workflow)
    assert [name for name in missing if not re.search(rf"\[{re.escape(name)}(\.zip)?\]\(https://", note)] == []


@each_template
def test_every_file_can_be_had_by_the_download_button_or_says_why_not(path: Path, client: Client):
    workflow = read(path)
    note, models = templates.note_of(workflow), models_of(workflow)
    files, folders = files_of(workflow), client.get("/models")
    offered = {entry["name"] for entry in models}
    assert offered <= files  # the page lists a file only where a widget asks for it
    assert [entry for entry in models if entry["directory"] not in folders] == []
    for entry in models:
        assert entry["name"].endswith(".safetensors")
        assert entry["url"].endswith(".safetensors")
        assert f"- `{entry['directory']}/`: [{entry['name']}]({entry['url']})" in note
    for name in files - offered:
        (line,) = [line for line in note.splitlines() if f"[{name}](https://" in line]
        assert "no download button" in line
    for loader in nodes_of(workflow, "IPALoadAdapter"):
        encoders = [
            entry["name"] for entry in loader["properties"].get("models", ()) if entry["directory"] == "clip_vision"
        ]
        adapter, encoder = loader["widgets_values"][:2]
        assert encoders == ([] if adapter in WITHOUT_ENCODER or encoder == templates.NONE else [encoder])


@each_template
def test_a_layer_preset_is_shown_with_the_base_it_is_known_for(path: Path):
    """And each base draws at its size."""
    workflow = read(path)
    presets = {
        templates.widgets(node)["layer_preset"]
        for kind in ("IPAApply", "IPAApplyImage")
        for node in nodes_of(workflow, kind)
    }
    has_xl = BASES[1] in files_of(workflow)
    assert has_xl or presets <= {"all"}
    for node in nodes_of(workflow, "EmptyLatentImage"):
        assert node["widgets_values"][:2] == [1024 if has_xl else 512] * 2


@each_file
def test_no_two_nodes_overlap(path: Path):
    workflow = read(path)
    for part in (workflow, *templates.subgraphs(workflow).values()):
        boxes = [(*node["pos"], *node["size"]) for node in part["nodes"]]
        for index, (left, top, width, height) in enumerate(boxes):
            for x, y, other_width, other_height in boxes[:index]:
                apart = left >= x + other_width or x >= left + width
                assert apart or top - TITLE >= y + other_height or y - TITLE >= top + height


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    # between them those without models of their own have every node; test_train_server.py has the one that trains
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.smoke] * (path not in DEMO))
        for path in WORKFLOWS
        if path != TRAINS
    ],
)
def test_it_draws(path: Path, client: Client, object_info: Any):
    if path == LOADS_TOKENS:
        writing = convert_ui_to_api(templates.made_small(read(SAVES_TOKENS)), object_info)
        pictures(client, templates.on_stand_ins(writing, None))
    prompt = convert_ui_to_api(templates.made_small(read(path)), object_info)
    drawn = pictures(client, prompt if path in DEMO else templates.on_stand_ins(prompt, TRANSFORMERS.get(path.stem)))
    assert [picture.shape[:2] for picture in drawn] == templates.DRAWN.get(path.stem, [(SIZE, SIZE)])
    assert min(picture.std() for picture in drawn) > 1


@pytest.mark.slow
def test_comfy_cli_executes_one(server: ComfyServer, tmp_path: Path):
    """The program that registries and scripts use; its settings and records stay in the test's folder."""
    path = tmp_path / "workflow.json"
    workflow = templates.made_small(templates.on_tiny_base(read(SIMPLE)), prefix="by comfy-cli")
    path.write_text(json.dumps(workflow), encoding="utf-8")
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
    for change in ({"mode": BYPASSED}, {"strength": 0.0}, {}):
        workflow = templates.made_small(templates.on_tiny_base(read(SIMPLE)))
        (apply,) = nodes_of(workflow, "IPAApplyImage")
        apply["mode"] = change.get("mode", apply["mode"])
        apply["widgets_values"][0] = change.get("strength", apply["widgets_values"][0])
        prompt = convert_ui_to_api(workflow, object_info)
        assert (str(apply["id"]) in prompt) == ("mode" not in change)
        drawn += pictures(client, prompt)
    bypassed, off, on = drawn
    assert np.array_equal(bypassed, off)
    assert not np.array_equal(bypassed, on)


@pytest.mark.smoke
@pytest.mark.slow
@pytest.mark.parametrize("path", BLUEPRINTS, ids=lambda path: path.stem)
def test_a_blueprint_draws(path: Path, client: Client, object_info: Any):
    """In the place where a user drops it: between checkpoint and sampler."""
    drawn = []
    for strength in (1.0, 0.0):
        workflow = templates.made_small(templates.with_blueprint(read(SIMPLE), read(path)))
        (host,) = [node for node in workflow["nodes"] if node["type"] in templates.subgraphs(workflow)]
        names = [entry["name"] for entry in host["inputs"] if "widget" in entry]
        host["widgets_values"] = [
            strength if name.endswith("strength") else value
            for name, value in zip(names, host["widgets_values"], strict=True)
        ]
        (checkpoint,) = nodes_of(workflow, "CheckpointLoaderSimple")
        checkpoint["widgets_values"] = [BASES["sdxl" in host["widgets_values"][names.index("adapter_file")]]]
        drawn += pictures(client, templates.on_stand_ins(convert_ui_to_api(workflow, object_info), None))
    assert not np.array_equal(*drawn)


def test_the_server_lists_the_blueprints(client: Client):
    assert sorted(SEARCHED.values()) == [path.stem for path in BLUEPRINTS]
    listed = [entry["name"] for entry in client.get("/global_subgraphs").values() if entry["source"] == "custom_node"]
    assert sorted(listed) == [path.stem for path in BLUEPRINTS]


def test_what_an_app_shows_is_in_its_workflow():
    assert [path.stem.removesuffix(".app") for path in APPS] == [
        "Image prompt",
        "Portrait",
        "Style of a picture",
        "Two references",
    ]
    for path in APPS:
        workflow = read(path)
        nodes = {node["id"]: node for node in workflow["nodes"]}
        shown = [(nodes[node], name) for node, name in workflow["extra"]["linearData"]["inputs"]]
        assert {"image", "text", "strength"} <= {name for _, name in shown}, path.name
        assert [name for node, name in shown if name not in templates.widgets(node)] == [], path.name
        assert [nodes[node]["type"] for node in workflow["extra"]["linearData"]["outputs"]] == ["SaveImage"]
        assert workflow["extra"]["linearMode"]


@pytest.mark.slow
def test_page_opens_each_workflow(page: Page):
    for path in WORKFLOWS:
        workflow = read(path)
        page.evaluate(f"app.loadGraphData({json.dumps(workflow)})")
        page.wait_for(f"app.graph._nodes.length === {len(workflow['nodes'])}")
        unknown = "!n.isSubgraphNode?.() && !(n.type in LiteGraph.registered_node_types)"
        unknown += " || n.has_errors" if path in DEMO else ""  # the server has no files of such models
        assert page.evaluate(f"app.graph._nodes.filter(n => {unknown}).map(n => n.type)") == []
        saved = page.evaluate("app.graph.serialize()")
        assert widget_values(saved) == widget_values(workflow), path.name
        assert len(saved["links"]) == len(workflow["links"])
        assert len(saved["extra"].get("linearData", {}).get("inputs", ())) == len(
            workflow["extra"].get("linearData", {}).get("inputs", ())
        )


@pytest.mark.slow
def test_page_shows_them_as_one_learns_and_finds_the_blueprints(page: Page, server: ComfyServer):
    names = page.evaluate(f"app.api.getWorkflowTemplates().then(found => found['{server.pack}'])")
    assert sorted(names) == sorted(path.stem for path in TEMPLATES)
    assert names[:2] == ["Image prompt.app", "Image prompt"]
    assert names[-1] == "SD3.5 image prompt"
    section = page.evaluate(
        f"app.api.getCustomNodesI18n().then(found => found.en.templateWorkflows.category['{server.pack}'])"
    )
    assert section == "IP-Adapter Studio"
    store = "document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s.get('nodeDef')"
    found = {word: f"{store}.nodeSearchService.searchNode('{word}')[0]?.display_name" for word in SEARCHED}
    for word, name in SEARCHED.items():
        page.wait_for(f"{found[word]} === '{name}'", seconds=60)  # they are fetched after the nodes


def test_the_demo_is_no_part_of_the_package():
    ignored = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    assert f"{PACKS.relative_to(ROOT).parts[0]}/" in ignored
    assert [path.name for path in (ROOT / "workflows").iterdir() if path.name in {demo.name for demo in DEMO}] == []
