"""The workflows, apps and blueprints that come along: read, and changed to run on the tiny models of the test's server."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from demo.client import Prompt
from demo.references import FILES
from demo.scenes import ENLARGED, SCENES
from demo.scenes import SIZE as DEMO_SIZE
from demo.server import ROOT

from .graphs import REFERENCE, TINY

FOLDER = ROOT / "workflows"
TEMPLATES = sorted(FOLDER.glob("*.json"))
APPS = [path for path in TEMPLATES if path.name.endswith(".app.json")]
DEMO = [scene.path for scene in SCENES]
WORKFLOWS = [*TEMPLATES, *DEMO]
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))
SIMPLE = FOLDER / "Image prompt.json"
SAVES_TOKENS = FOLDER / "A reference as a small file.json"
LOADS_TOKENS = FOLDER / "A small file as reference.json"
TRAINS = FOLDER / "Train on your pictures.json"
# of diffusion transformers, with the tiny model they are drawn with
TRANSFORMERS = {
    "Anima image prompt": "Anima",
    "Chroma image prompt": "Chroma",
    "FLUX image prompt": "FLUX",
    "FLUX image prompt (InstantX)": "FLUX",
    "SD3.5 image prompt": "SD3.5",
}
NONE = "none"  # in place of an image encoder, where none is needed
NOTES = {"Note", "MarkdownNote"}
MODEL_FILES = (".safetensors", ".bin")
# a pickle cannot say that its heads are tiny
RENAMED = {"instantx-flux-ip-adapter.bin": "instantx-flux-ip-adapter.safetensors"}
SIZE = 64
SMALL: dict[str, dict[int, Any]] = {  # values by their place, for a picture in seconds
    "EmptyLatentImage": {0: SIZE, 1: SIZE},
    "EmptySD3LatentImage": {0: SIZE, 1: SIZE},
    "ImageScale": {1: SIZE, 2: SIZE},
    "KSampler": {2: 2},  # steps
    "SplitImageToTileList": {0: 96, 1: 96},
}
DRAWN = {path.stem: [(SIZE * ENLARGED,) * 2] * len(scene.labels) for path, scene in zip(DEMO, SCENES, strict=True)}
DRAWN["Upscale by tiles"] = [(2 * SIZE, 2 * SIZE)]
DRAWN["Which picture is closest"] = [(SIZE, SIZE)] * 4
DRAWN["Strengths and presets side by side"] = [
    (3 * (SIZE + 42) + 8, 3 * (SIZE + 8) + 8)
]  # labels of two lines, and gaps
"""Heights and widths of what a workflow saves, if it is not one picture of `SIZE`."""
assert DEMO_SIZE == SIZE
Node = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def subgraphs(workflow: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By id, which is the type of the nodes that stand for them."""
    return {entry["id"]: entry for entry in workflow.get("definitions", {}).get("subgraphs", ())}


def all_nodes(workflow: dict[str, Any]) -> Iterator[Node]:
    """Those in subgraphs too."""
    for part in (workflow, *subgraphs(workflow).values()):
        yield from part["nodes"]


def nodes_of(workflow: dict[str, Any], kind: str) -> list[Node]:
    return [node for node in all_nodes(workflow) if node["type"] == kind]


def real_nodes(workflow: dict[str, Any]) -> list[Node]:
    """Those that the server runs."""
    return [node for node in all_nodes(workflow) if node["type"] not in NOTES | subgraphs(workflow).keys()]


def note_of(workflow: dict[str, Any]) -> str:
    return "\n".join(node["widgets_values"][0] for kind in NOTES for node in nodes_of(workflow, kind))


def widgets(node: Node) -> dict[str, Any]:
    """Values by name, of a node without a seed."""
    names = [entry["name"] for entry in node["inputs"] if "widget" in entry]
    return dict(zip(names, node.get("widgets_values", ()), strict=False))


def made_small(workflow: dict[str, Any], prefix: str | None = None) -> dict[str, Any]:
    """Small pictures, few steps, the encoder that is there. Where no face is looked for, the picture loaded is small too.

    Args:
        prefix: of the saved pictures' names.
    """
    if not nodes_of(workflow, "IPALoadFaceModel"):
        for node in nodes_of(workflow, "LoadImage"):
            node["widgets_values"][0] = node["widgets_values"][0].replace(REFERENCE, FILES[0])
    for node in all_nodes(workflow):
        for place, value in SMALL.get(node["type"], {}).items():
            node["widgets_values"][place] = value
        if node["type"] == "IPALoadAdapter" and node["widgets_values"][1] != NONE:
            node["widgets_values"][1] = "auto"
        if node["type"] == "SaveImage" and prefix:
            node["widgets_values"][0] = prefix
    return workflow


def on_tiny_base(workflow: dict[str, Any]) -> dict[str, Any]:
    """For the base that ComfyUI's own loaders load: adapters of the same kinds that fit it."""
    for node in nodes_of(workflow, "IPALoadAdapter"):
        node["widgets_values"][0] = _tiny(node["widgets_values"][0])
    return workflow


def on_stand_ins(prompt: Prompt, kind: str | None) -> Prompt:
    """A prompt with what stands for the loaders of large files in the test's server.

    Args:
        kind: of a diffusion transformer; None for a UNet.
    """
    stand_ins: dict[str, Callable[[dict[str, Any]], tuple[str, dict[str, Any]]]] = {
        "CheckpointLoaderSimple": lambda given: ("TinyCheckpoint", given),
        "CLIPVisionLoader": lambda given: ("TinyCLIPVision", given),
        "ControlNetLoader": lambda given: ("TinyControlNet", given),
    }
    left_out: tuple[str, ...] = ()
    if kind:
        stand_ins = {
            "CheckpointLoaderSimple": lambda _given: ("TinyTransformer", {"kind": kind}),
            "UNETLoader": lambda _given: ("TinyTransformer", {"kind": kind}),
            "CLIPTextEncode": lambda given: ("TinyPrompt", {"text": given["text"], "kind": kind}),
            "VAEDecode": lambda given: ("TinyDecode", {"samples": given["samples"]}),
            "IPALoadAdapter": lambda given: ("IPALoadAdapter", given | {"adapter_file": _tiny(given["adapter_file"])}),
        }
        left_out = ("CLIPLoader", "VAELoader")
    changed: Prompt = {}
    for name, node in prompt.items():
        stand_in = stand_ins.get(node["class_type"], lambda given, node=node: (node["class_type"], given))
        class_type, inputs = stand_in(node["inputs"])
        if class_type not in left_out:
            changed[name] = {"class_type": class_type, "inputs": inputs}
    return changed


def on_the_world(workflow: dict[str, Any], folder: str) -> dict[str, Any]:
    """A workflow that trains: on the demo's world, whose base model and encoder are folders too; two steps.

    Args:
        folder: of pictures, in the input folder.
    """
    models = {"base_model": "demo_world/", "image_encoder": "demo_encoder/", "start_from": NONE}
    asked = {"folder": folder, "kind": "base", "steps": 2, "resolution": SIZE, **models}
    for node in all_nodes(workflow):
        if node["type"] == "IPATrain":
            node["widgets_values"] = list((widgets(node) | asked).values())
        if node["type"] == "CheckpointLoaderSimple":
            node["widgets_values"] = ["demo_world.safetensors"]
    return workflow


def with_blueprint(workflow: dict[str, Any], blueprint: dict[str, Any]) -> dict[str, Any]:
    """A simple workflow in which a blueprint stands in the place of its adapter and its apply node, as if dropped there."""
    (apply,), (loader,) = nodes_of(workflow, "IPAApplyImage"), nodes_of(workflow, "IPALoadAdapter")
    (host,) = blueprint["nodes"]
    sources = {entry["name"]: entry["link"] for entry in apply["inputs"] if entry.get("link")}
    links = {link[0]: link for link in workflow["links"]}
    host |= {"id": apply["id"], "order": apply["order"]}
    kept = [link for link in links.values() if loader["id"] not in (link[1], link[3]) and link[3] != apply["id"]]
    for slot, entry in enumerate(host["inputs"]):
        if "widget" in entry:
            continue
        link = list(links[sources["model" if entry["name"] == "model" else "image"]])
        link[0], link[3:5] = max(links) + 1 + slot, [host["id"], slot]
        entry["link"] = link[0]
        kept.append(link)
    host["outputs"][0]["links"] = apply["outputs"][0]["links"]
    nodes = [host if node is apply else node for node in workflow["nodes"] if node is not loader]
    return workflow | {"nodes": nodes, "links": kept, "definitions": blueprint["definitions"]}


def _tiny(file: str) -> str:
    return f"{TINY}{RENAMED.get(file, file)}"
