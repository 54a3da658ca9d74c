"""What the benches share: a real ComfyUI in this process, adapters in it, and one JSON object on stdout."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests"), str(ROOT)]

import torch  # noqa: E402

from support import comfy_host, published  # noqa: E402
from support.graphs import PLAIN  # noqa: E402


def main(measure: Callable[[Path], dict[str, Any]]) -> None:
    """Run a bench in a fresh ComfyUI folder; whatever else is printed goes to stderr."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.redirect_stdout(sys.stderr):
        _start(Path(folder))
        result = measure(Path(folder))
    print(json.dumps(result))


def _start(folder: Path) -> None:
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    from comfy.cli_args import args

    args.use_pytorch_cross_attention = True  # read when comfy.ldm.modules.attention is imported
    comfy_host.start(folder)
    torch.manual_seed(0)


def write_adapter(folder: Path, shapes: published.Shapes, metadata: dict[str, str] | None = None) -> str:
    """Write random tensors of these shapes to models/ipadapter; returns the file's name."""
    path = folder / "models" / "ipadapter" / "adapter.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    published.write_safetensors(path, published.random_tensors(shapes, scale=0.1), metadata)
    return path.name


def random_tokens(adapter: Any, count: int, width: int, references: int = 1) -> Any:
    """`ImageTokens` of an adapter, `count` tokens of `width` numbers for each reference."""
    cond, uncond = torch.randn(2, references, count, width)
    return comfy_host.pack("ipadapter_core.branch.tokens").ImageTokens(cond, uncond, adapter.adapter_id)


def apply(model: Any, adapter: Any, tokens: Any, **changes: Any) -> Any:
    """`IPAApply` with its default widgets, apart from `changes`."""
    return comfy_host.run("IPAApply", model=model, adapter=adapter, tokens=tokens, **{**PLAIN, **changes})


def applied(model: Any) -> Any:
    """What adapters do on a model: its sites and plans."""
    options = model.model_options["transformer_options"]
    return comfy_host.pack("nodes.patching.applied").applied_to(options)


def installed_patches(model: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Our patches on a model, each with its address in the UNet."""
    slots = model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
    patch_class = comfy_host.pack("nodes.patching.unet").IPAttentionPatch
    return ((address, patch) for address, patch in slots.items() if isinstance(patch, patch_class))
