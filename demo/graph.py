"""The demo's prompt: the shipped workflow with names, size and strength replaced."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from comfy_cli.workflow_to_api import convert_ui_to_api

from demo.client import Client, Prompt
from demo.server import ROOT

REFERENCE = "reference.png"
LATENT = "latent"  # node id of the saved latent
TINY = {"EmptyLatentImage": {"width": 64, "height": 64}, "KSampler": {"steps": 4}}


class UnknownFileError(Exception):
    """A name that this ComfyUI does not list."""


def build(client: Client, checkpoint: str | None, adapter: str | None) -> Prompt:
    """workflows/ipa_simple.json as the server takes it, with the latent saved beside the picture.

    Args:
        checkpoint, adapter: the user's files; without them the workflow's names, which are the tiny models' too, at a
            size and a number of steps that suit those.

    Raises:
        UnknownFileError: ComfyUI does not list one of them.
    """
    workflow = json.loads((ROOT / "workflows" / "ipa_simple.json").read_text(encoding="utf-8"))
    info = client.get("/object_info")
    prompt: Prompt = convert_ui_to_api(workflow, info)
    changes: dict[str, Mapping[str, Any]] = {"LoadImage": {"image": REFERENCE}}
    if checkpoint and adapter:
        for class_type, name, what, file in (
            ("CheckpointLoaderSimple", "ckpt_name", "checkpoint", checkpoint),
            ("IPALoadAdapter", "adapter_file", "adapter", adapter),
        ):
            choices = _choices(info[class_type]["input"]["required"][name])
            if file not in choices:
                raise UnknownFileError(f"this ComfyUI has no {what} {file}. It has: {', '.join(choices) or 'none'}")
            changes[class_type] = {name: file}
    else:
        changes |= TINY
    for class_type, inputs in changes.items():
        prompt[id_of(prompt, class_type)]["inputs"].update(inputs)
    samples = [id_of(prompt, "KSampler"), 0]
    prompt[LATENT] = {"class_type": "SaveLatent", "inputs": {"samples": samples, "filename_prefix": "demo"}}
    return prompt


def at_strength(prompt: Prompt, strength: float | None) -> Prompt:
    """The prompt at another strength; None takes the adapter out altogether."""
    changed = copy.deepcopy(prompt)
    apply = changed[id_of(prompt, "IPAApply")]
    if strength is None:
        changed[id_of(prompt, "KSampler")]["inputs"]["model"] = apply["inputs"]["model"]
    else:
        apply["inputs"]["strength"] = strength
    return changed


def settings(prompt: Prompt) -> dict[str, Any]:
    """What `demo/reference.py` has to know to make the same picture at strength 1."""
    sampler, size = (prompt[id_of(prompt, class_type)]["inputs"] for class_type in ("KSampler", "EmptyLatentImage"))
    texts = {side: prompt[sampler[side][0]]["inputs"]["text"] for side in ("positive", "negative")}
    sampling = {name: sampler[name] for name in ("seed", "steps", "cfg", "scheduler")}
    return {**texts, **sampling, "strength": 1.0, "width": size["width"], "height": size["height"]}


def id_of(prompt: Prompt, class_type: str) -> str:
    return next(node_id for node_id, node in prompt.items() if node["class_type"] == class_type)


def _choices(combo: Sequence[Any]) -> list[str]:
    """Of a combo in the form of older or newer ComfyUI versions."""
    choices: list[str] = combo[0] if isinstance(combo[0], list) else combo[1]["options"]
    return choices
