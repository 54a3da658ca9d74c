"""The main job once: a photograph steers a picture in a real ComfyUI server; a table shows that the numbers are right.

Examples:
  scripts/demo.sh
  scripts/demo.sh --image photo.jpg --output out/
  COMFYUI_PATH=~/ComfyUI scripts/demo.sh --checkpoint dreamshaper.safetensors --adapter ip-adapter_sd15.safetensors
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import skimage
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.console import Console
from rich.table import Table
from safetensors.torch import load, load_file
from torch import Tensor
from websocket import WebSocketException

from demo import graph
from demo.checks import Check, check
from demo.client import Client, Event, Prompt, RejectedError
from demo.models import ModelsError, tiny_models
from demo.server import ROOT, ComfyServer, ServerError
from demo.sheet import write_sheet

DEFAULT_IMAGE = Path(skimage.__file__).parent / "data" / "chelsea.png"
STRENGTHS = (0.0, 0.5, 1.0)
SILENCE = 600  # seconds a large model may take to load
progress = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
result = Console(highlight=False, markup=False, soft_wrap=True)


class DemoError(Exception):
    """Something the user can put right; the message says what."""


def main() -> int:
    args = _arguments()
    try:
        checks = _run(args)
    except (DemoError, graph.UnknownFileError, ModelsError, RejectedError, ServerError, OSError) as error:
        progress.print(f"demo: error: {error}", style="red")
        return 1
    except KeyboardInterrupt:
        progress.print("demo: stopped")
        return 130
    failed = [entry.claim for entry in checks if not entry.holds]
    if failed:
        progress.print(f"demo: error: does not hold: {'; '.join(failed)}", style="red")
    return 1 if failed else 0


def _run(args: argparse.Namespace) -> list[Check]:
    start = time.monotonic()
    reference = read_picture(args.image)
    args.output.mkdir(parents=True, exist_ok=True)
    is_tiny = args.checkpoint is None
    if is_tiny:
        progress.print("demo: tiny random models of SD1.5 layout …")
    models = tiny_models() if is_tiny else None
    on_cpu = is_tiny or not torch.accelerator.is_available()
    latents: dict[float | None, Tensor] = {}
    pictures = [("reference", reference)]
    with tempfile.TemporaryDirectory() as folder:
        progress.print("demo: starting ComfyUI …")
        with ComfyServer(Path(folder), models=models, options=["--cpu"] if on_cpu else []) as server:
            reference.save(server.input / graph.REFERENCE)
            try:
                with Client(server.url, timeout=SILENCE) as client:
                    prompt = graph.build(client, args.checkpoint, args.adapter)
                    for strength in (None, *STRENGTHS):
                        name = "without adapter" if strength is None else f"strength {strength:g}"
                        latents[strength], picture = _sample(client, graph.at_strength(prompt, strength), name)
                        if strength is not None:
                            pictures.append((name, picture))
            except WebSocketException as error:
                raise ServerError(f"ComfyUI does not answer any more ({error}):\n{server.log_tail()}") from error
        expected = None if models is None else _in_diffusers(models, Path(folder), prompt)
    sheet = args.output / "demo.png"
    write_sheet(sheet, pictures)
    checks = check(latents, expected)
    _print_table(checks)
    result.print(f"contact sheet: {sheet} ({time.monotonic() - start:.0f} s)")
    if is_tiny:
        result.print("The base model here is random and its pictures are noise: the table is what shows the work.")
    return checks


def read_picture(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError as error:
        raise DemoError(f"there is no file {path}") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise DemoError(f"{path} is not a picture that can be read ({error})") from error


def _sample(client: Client, prompt: Prompt, name: str) -> tuple[Tensor, Image.Image]:
    """Latent and picture."""
    start = time.monotonic()
    with progress.status(f"{name} …") as status:  # a live line on a terminal, nothing elsewhere

        def show(event: Event) -> None:
            if event.type == "progress":
                status.update(f"{name}: step {event.data['value']} of {event.data['max']}")

        run = client.run(prompt, show)
    if run.end != "execution_success":
        raise DemoError(run.error or f"{name} was interrupted")
    steps = prompt[graph.id_of(prompt, "KSampler")]["inputs"]["steps"]
    progress.print(f"demo: {name}: {steps} steps, {time.monotonic() - start:.1f} s")
    (latent,) = client.files(run, graph.LATENT)
    (picture,) = client.files(run, graph.id_of(prompt, "SaveImage"))
    return load(latent)["latent_tensor"], Image.open(io.BytesIO(picture))


def _in_diffusers(models: Path, folder: Path, prompt: Prompt) -> Tensor:
    """The same picture at strength 1 by `demo/reference.py`, in a process of its own."""
    progress.print("demo: strength 1 with diffusers …")
    latent = folder / "latent.safetensors"
    command = [sys.executable, "-m", "demo.reference", "--models", str(models)]
    command += ["--image", str(folder / "input" / graph.REFERENCE), "--output", str(latent)]
    command += ["--settings", json.dumps(graph.settings(prompt))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DemoError(f"the run with diffusers failed:\n{done.stderr[-2000:]}")
    return load_file(latent)["latent"]


def _print_table(checks: Sequence[Check]) -> None:
    table = Table("check", "measured", "holds")
    for entry in checks:
        table.add_row(entry.claim, entry.measured, "yes" if entry.holds else "NO")
    result.print(table)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/demo.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--image", type=Path, default=DEFAULT_IMAGE, help="reference picture (a cat by default)")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for demo.png (default: out)")
    parser.add_argument("--checkpoint", help="a checkpoint of your ComfyUI (COMFYUI_PATH) instead of the tiny one")
    parser.add_argument("--adapter", help="an adapter of your ComfyUI, for that checkpoint")
    args = parser.parse_args()
    if (args.checkpoint is None) != (args.adapter is None):
        parser.error("--checkpoint and --adapter go together")
    return args


if __name__ == "__main__":
    sys.exit(main())
