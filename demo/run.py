"""The main job once: a photograph steers a picture in a real ComfyUI server, and a table shows that the numbers are right.

Examples:
  scripts/demo.sh
  scripts/demo.sh --image photo.jpg --output out/
  COMFYUI_PATH=~/ComfyUI scripts/demo.sh --checkpoint dreamshaper.safetensors --adapter ip-adapter_sd15.safetensors
"""

import argparse
import io
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import skimage
from comfy_cli.workflow_to_api import convert_ui_to_api
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.table import Table
from safetensors.torch import load, load_file
from torch import Tensor

from demo.client import Client, Event, Prompt, RejectedError, Run
from demo.models import tiny_models
from demo.server import ROOT, ComfyServer, ServerError
from demo.sheet import write_sheet

DEFAULT_IMAGE = Path(skimage.__file__).parent / "data" / "chelsea.png"
STRENGTHS = (0.0, 0.5, 1.0)
TINY = {"EmptyLatentImage": {"width": 128, "height": 128}, "KSampler": {"steps": 6}}
TOLERANCE = 1e-4  # relative
console = Console(stderr=True, highlight=False)


class DemoError(Exception):
    """Something the user can put right; the message says what."""


def main() -> int:
    args = _arguments()
    try:
        image = _checked_image(args.image)
        args.output.mkdir(parents=True, exist_ok=True)
        return _run(args, image)
    except (DemoError, RejectedError, ServerError, OSError) as error:
        console.print(f"demo: {error}", style="red")
        return 1


def _run(args: argparse.Namespace, image: Path) -> int:
    own_models = bool(args.checkpoint)
    models = None if own_models else tiny_models()
    with tempfile.TemporaryDirectory() as folder:
        console.print("demo: starting ComfyUI …")
        options = [] if own_models else ["--cpu"]
        with ComfyServer(Path(folder), models=models, options=options) as server, Client(server.url) as client:
            with Image.open(image) as picture:
                picture.convert("RGB").save(server.input / "reference.png")
            prompt = _prompt(client, args)
            latents, pictures = {}, {}
            for strength in (None, *STRENGTHS):
                name = "without adapter" if strength is None else f"strength {strength:g}"
                run = _followed(client, _at(prompt, strength), name)
                latents[strength], pictures[strength] = _results(client, run, prompt)
        reference = None if models is None else _in_diffusers(models, image, prompt, Path(folder))
    sheet = args.output / "demo.png"
    with Image.open(image) as picture:
        write_sheet(sheet, [("reference", picture), *((f"strength {s:g}", pictures[s]) for s in STRENGTHS)])
    passed = _table(latents, reference)
    Console().print(f"contact sheet: {sheet}")
    if not own_models:
        Console().print("The base model here is random, so its pictures are noise: the table is what shows the work.")
    return 0 if passed else 1


def _prompt(client: Client, args: argparse.Namespace) -> Prompt:
    """workflows/ipa_simple.json as the server takes it, with a latent saved beside the picture."""
    workflow = json.loads((ROOT / "workflows" / "ipa_simple.json").read_text(encoding="utf-8"))
    prompt: Prompt = convert_ui_to_api(workflow, client.get("/object_info"))
    changes: dict[str, dict[str, Any]] = {"LoadImage": {"image": "reference.png"}}
    if args.checkpoint:
        changes["CheckpointLoaderSimple"] = {"ckpt_name": args.checkpoint}
        changes["IPALoadAdapter"] = {"adapter_file": args.adapter}
    else:
        changes |= TINY
    for kind, inputs in changes.items():
        prompt[_id_of(prompt, kind)]["inputs"].update(inputs)
    samples = [_id_of(prompt, "KSampler"), 0]
    prompt["latent"] = {"class_type": "SaveLatent", "inputs": {"samples": samples, "filename_prefix": "demo"}}
    return prompt


def _at(prompt: Prompt, strength: float | None) -> Prompt:
    """The prompt at another strength; None takes the adapter out altogether."""
    changed: Prompt = json.loads(json.dumps(prompt))
    apply = changed[_id_of(prompt, "IPAApply")]
    if strength is None:
        changed[_id_of(prompt, "KSampler")]["inputs"]["model"] = apply["inputs"]["model"]
    else:
        apply["inputs"]["strength"] = strength
    return changed


def _followed(client: Client, prompt: Prompt, name: str) -> Run:
    with console.status(f"{name} …") as status:

        def show(event: Event) -> None:
            if event.type == "progress":
                status.update(f"{name}: {event.data['value']} of {event.data['max']}")

        run = client.run(prompt, show)
    if run.end != "execution_success":
        raise DemoError(run.error or f"{name} was interrupted")
    console.print(f"demo: {name} done")
    return run


def _results(client: Client, run: Run, prompt: Prompt) -> tuple[Tensor, Image.Image]:
    (latent,) = client.files(run, "latent")
    (picture,) = client.files(run, _id_of(prompt, "SaveImage"))
    return load(latent)["latent_tensor"], Image.open(io.BytesIO(picture))


def _in_diffusers(models: Path, image: Path, prompt: Prompt, folder: Path) -> Tensor:
    """The same picture by `demo/reference.py`, in a process of its own."""
    console.print("demo: the same with diffusers …")
    sampler, size = (prompt[_id_of(prompt, kind)]["inputs"] for kind in ("KSampler", "EmptyLatentImage"))
    texts = {side: prompt[sampler[side][0]]["inputs"]["text"] for side in ("positive", "negative")}
    settings = {**texts, "strength": 1.0, "width": size["width"], "height": size["height"]}
    settings |= {name: sampler[name] for name in ("seed", "steps", "cfg", "scheduler")}
    with tempfile.TemporaryDirectory() as results:
        latent = Path(results) / "latent.safetensors"
        command = [sys.executable, "-m", "demo.reference", "--models", str(models), "--image", str(image)]
        command += ["--settings", json.dumps(settings), "--output", str(latent)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoError(f"the run with diffusers failed:\n{done.stderr[-2000:]}")
        return load_file(latent)["latent"]


def _table(latents: dict[float | None, Tensor], reference: Tensor | None) -> bool:
    """Print what was checked; True if all of it holds."""
    plain = latents[None]
    distances = [float((latents[strength] - plain).norm() / plain.norm()) for strength in STRENGTHS]
    rows = [
        ("strength 0 equals the model without adapter, bit for bit", "", bool((latents[0.0] == plain).all())),
        (
            "the distance from it grows with strength",
            " < ".join(f"{distance:.3g}" for distance in distances),
            all(low < high for low, high in itertools.pairwise(distances)),
        ),
    ]
    if reference is not None:
        error = float((latents[1.0] - reference).norm() / reference.norm())
        rows.append((f"strength 1 equals diffusers within {TOLERANCE:g}", f"{error:.1e}", error <= TOLERANCE))
    table = Table("check", "measured", "holds")
    for check, measured, holds in rows:
        table.add_row(check, measured, "yes" if holds else "NO")
    Console().print(table)
    return all(holds for *_, holds in rows)


def _id_of(prompt: Prompt, class_type: str) -> str:
    return next(node_id for node_id, node in prompt.items() if node["class_type"] == class_type)


def _checked_image(path: Path) -> Path:
    try:
        with Image.open(path) as picture:
            picture.load()
    except FileNotFoundError as error:
        raise DemoError(f"there is no file {path}") from error
    except (UnidentifiedImageError, OSError) as error:
        raise DemoError(f"{path} is not a picture that can be read ({error})") from error
    return path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/demo.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, default=DEFAULT_IMAGE, help="reference picture (a cat by default)")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for demo.png (default: out)")
    parser.add_argument("--checkpoint", help="a checkpoint of your ComfyUI (COMFYUI_PATH) instead of the tiny one")
    parser.add_argument("--adapter", help="an adapter of your ComfyUI, for that checkpoint")
    args = parser.parse_args()
    if bool(args.checkpoint) != bool(args.adapter):
        parser.error("--checkpoint and --adapter go together")
    return args


if __name__ == "__main__":
    sys.exit(main())
