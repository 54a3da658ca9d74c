"""A real ComfyUI in this process, on the CPU, with the pack loaded by ComfyUI's own loader."""

import asyncio
import gc
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def start(base_directory: Path) -> None:
    """Import ComfyUI from COMFYUI_PATH and load the pack into it; models and outputs lie below `base_directory`."""
    start_alone(base_directory)
    load_pack()


def start_alone(base_directory: Path) -> None:
    """As `start`, without the pack."""
    comfyui = os.environ["COMFYUI_PATH"]
    sys.path.insert(0, comfyui)  # before the checkout, whose folder `nodes` has the name of ComfyUI's module
    from comfy.cli_args import args

    args.cpu = True
    args.use_pytorch_cross_attention = True  # its choice on a GPU; on a CPU it would take one that is slower
    args.base_directory = str(base_directory)
    (base_directory / "models").mkdir(parents=True, exist_ok=True)
    (base_directory / "models" / "clip_vision").mkdir(exist_ok=True)
    # As main.py does: older versions put comfy/ on the path later, whose utils.py would take this package's name.
    importlib.import_module("utils.extra_config")
    importlib.import_module("nodes")


def load_pack() -> None:
    """Load the pack with ComfyUI's own loader."""
    assert asyncio.run(importlib.import_module("nodes").load_custom_node(str(ROOT))), "ComfyUI could not load the pack"
    gc.freeze()  # as tests/conftest.py does: these modules stay, and ComfyUI may collect before each prompt


def node(node_id: str) -> type:
    """A node class as ComfyUI registered it."""
    return importlib.import_module("nodes").NODE_CLASS_MAPPINGS[node_id]


def pack(name: str) -> ModuleType:
    """A module of the pack under the name ComfyUI gave it, such as `pack("ipadapter_core.branch.kv")`."""
    prefix = node("IPAApply").__module__.removesuffix(".nodes.definitions.apply")
    return importlib.import_module(f"{prefix}.{name}")


def call(node_id: str, **inputs: object) -> tuple[Any, ...]:
    """Execute a node as ComfyUI does, in inference mode, and return all its outputs."""
    import torch

    found = node(node_id)
    with torch.inference_mode():
        if hasattr(found, "EXECUTE_NORMALIZED"):
            return found.EXECUTE_NORMALIZED(**inputs).args
        result = getattr(found(), found.FUNCTION)(**inputs)  # of ComfyUI's first node interface
    return result["result"] if isinstance(result, dict) else result


def schema(node_id: str) -> Any:
    """A node's inputs, outputs and texts."""
    return node(node_id).GET_SCHEMA()


def title(node_id: str, name: str) -> str:
    """What the screen calls an input."""
    (item,) = (item for item in schema(node_id).inputs if item.id == name)
    return str(item.display_name or item.id)


def fingerprint(node_id: str, **inputs: object) -> Any:
    """What ComfyUI compares to know whether a node has to run again."""
    found = node(node_id)
    compared = found.IS_CHANGED if hasattr(found, "IS_CHANGED") else found.fingerprint_inputs
    return compared(**inputs)


def run(node_id: str, **inputs: object) -> object:
    """The first output of `call`."""
    return call(node_id, **inputs)[0]
