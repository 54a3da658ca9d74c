"""Prompts made from workflow files, and what is asked of them."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comfy_cli.workflow_to_api import convert_ui_to_api

from demo.client import Prompt
from demo.layout import SIMPLE
from demo.scenes import Scene

REFERENCE = "reference.png"  # of a run with the user's models
LATENT = "latent"  # node id of the saved latent
_UP = ("images", "image", "samples")  # inputs that lead from a saved picture to its sampler


class UnknownFileError(Exception):
    """A name that this ComfyUI does not list."""


def of_scene(info: Mapping[str, Any], scene: Scene, first: str) -> Prompt:
    """A scene's workflow file as the server takes it.

    Args:
        info: the server's /object_info.
        first: name in ComfyUI's input folder of what stands in the first reference's place.
    """
    prompt = _read(scene.path, info)
    for node in prompt.values():
        if node["class_type"] == "LoadImage" and node["inputs"]["image"] == scene.references[0]:
            node["inputs"]["image"] = first
    return prompt


def of_own_models(info: Mapping[str, Any], checkpoint: str, adapter: str) -> Prompt:
    """The workflow "Image prompt" with the user's files, and with the latent saved beside the picture.

    Raises:
        UnknownFileError: ComfyUI does not list one of them.
    """
    prompt = _read(SIMPLE, info)
    changes: dict[str, dict[str, Any]] = {"LoadImage": {"image": REFERENCE}}
    for class_type, name, what, file in (
        ("CheckpointLoaderSimple", "ckpt_name", "checkpoint", checkpoint),
        ("IPALoadAdapter", "adapter_file", "adapter", adapter),
    ):
        choices = _choices(info[class_type]["input"]["required"][name])
        if file not in choices:
            raise UnknownFileError(f"this ComfyUI has no {what} {file}. It has: {', '.join(choices) or 'none'}")
        changes[class_type] = {name: file}
    changes["IPALoadAdapter"] |= {"image_encoder": "auto"}
    for class_type, inputs in changes.items():
        prompt[ids_in_order(prompt, class_type)[0]]["inputs"].update(inputs)
    (sampler,) = ids_in_order(prompt, "KSampler")
    return prompt | {LATENT: _save_latent(sampler)}


def at_strength(prompt: Prompt, strength: float | None) -> Prompt:
    """A prompt with one branch at another strength; None takes the adapter out altogether."""
    changed = copy.deepcopy(prompt)
    (apply,), (sampler,) = ids_in_order(prompt, "IPAApplyImage"), ids_in_order(prompt, "KSampler")
    if strength is None:
        changed[sampler]["inputs"]["model"] = prompt[apply]["inputs"]["model"]
    else:
        changed[apply]["inputs"]["strength"] = strength
    return changed


def with_latents(prompt: Prompt) -> tuple[Prompt, dict[float | None, str], str]:
    """The prompt of the strength sweep with its latents saved, and two branches more: no adapter, and Euler's method.

    Returns:
        The prompt; ids of the nodes that save latents, by strength, None being without the adapter; id of the one that
        saves what diffusers is compared with, at the highest strength.
    """
    changed, latents = dict(prompt), dict[float | None, str]()
    by_strength = {}
    for save in ids_in_order(prompt, "SaveImage"):
        sampler = sampler_of(prompt, save)
        apply = prompt[sampler]["inputs"]["model"][0]
        by_strength[prompt[apply]["inputs"]["strength"]] = sampler, apply
    for strength, (sampler, _) in sorted(by_strength.items()):
        latents[strength] = f"{LATENT} {strength}"
        changed[latents[strength]] = _save_latent(sampler)
    sampler, apply = by_strength[max(by_strength)]
    unpatched = prompt[apply]["inputs"]["model"]
    for name, inputs in (("plain", {"model": unpatched}), ("euler", {"sampler_name": "euler"})):
        changed[name] = copy.deepcopy(prompt[sampler])
        changed[name]["inputs"].update(inputs)
        changed[f"{LATENT} {name}"] = _save_latent(name)
    return changed, {None: f"{LATENT} plain", **latents}, f"{LATENT} euler"


def settings(prompt: Prompt, sampler: str) -> dict[str, Any]:
    """What `demo/reference.py` has to know to make the latent of a sampler again."""
    inputs = prompt[sampler]["inputs"]
    size = prompt[inputs["latent_image"][0]]["inputs"]
    texts = {side: prompt[inputs[side][0]]["inputs"]["text"] for side in ("positive", "negative")}
    sampling = {name: inputs[name] for name in ("seed", "steps", "cfg", "scheduler")}
    strength = prompt[inputs["model"][0]]["inputs"]["strength"]
    return {**texts, **sampling, "strength": strength, "width": size["width"], "height": size["height"]}


def ids_in_order(prompt: Prompt, class_type: str) -> list[str]:
    """In the order in which the workflow's nodes were made; those added here come last."""
    found = (node_id for node_id, node in prompt.items() if node["class_type"] == class_type)
    return sorted(found, key=lambda node_id: (len(node_id), node_id))


def sampler_of(prompt: Prompt, node_id: str) -> str:
    """The KSampler that a saved picture comes from."""
    while prompt[node_id]["class_type"] != "KSampler":
        inputs = prompt[node_id]["inputs"]
        node_id = next(inputs[name][0] for name in _UP if name in inputs)
    return node_id


def _read(path: Path, info: Mapping[str, Any]) -> Prompt:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    prompt: Prompt = convert_ui_to_api(workflow, info)
    return prompt


def _save_latent(sampler: str) -> dict[str, Any]:
    return {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": "demo"}}


def _choices(combo: Sequence[Any]) -> list[str]:
    """Of a combo in the form of older or newer ComfyUI versions."""
    choices: list[str] = combo[0] if isinstance(combo[0], list) else combo[1]["options"]
    return choices
