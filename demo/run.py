"""Image prompts at work: six workflows in a real ComfyUI server, drawn with the small trained model that comes along.

Examples:
  scripts/demo.sh
  scripts/demo.sh --image photo.jpg --output out/
  scripts/demo.sh --serve
  COMFYUI_PATH=~/ComfyUI scripts/demo.sh --install
  COMFYUI_PATH=~/ComfyUI scripts/demo.sh --checkpoint dreamshaper.safetensors --adapter ip-adapter_sd15.safetensors
"""

import argparse
import os
import signal
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
from websocket import WebSocketException

from demo import graph, references, show
from demo.checks import Check
from demo.client import Client, RejectedError
from demo.install import SAVED, InstallError, install
from demo.models import ModelsError, demo_models
from demo.page import write_page
from demo.scenes import PACKS
from demo.server import ComfyServer, ServerError
from demo.session import DemoError, progress
from demo.sheet import write_sheet
from demo.show import Outcome
from demo.world.pictures import without_alpha

OWN_DEFAULT = Path(skimage.__file__).parent / "data" / "chelsea.png"  # reference for the user's models: a cat
SILENCE = 600  # seconds a large model may take to load
TITLE = "IP-Adapter Studio"
JUDGE = (
    "Bars: similarity to the reference of the same colour, as a network that trained nothing here sees it; the tick "
    "is what two unrelated emoji have."
)
TEXTS = {
    "world": (
        "What a model of a few CPU hours draws when it is shown a picture: its shape, colours and larger details.",
        f"{JUDGE} Neither image encoder nor adapter has seen the references; the base model has.",
    ),
    "photo": (
        "Your picture in a world of emoji: it is far from all this model knows, so expect its colours and shapes.",
        JUDGE,
    ),
    "own": ("A reference, and what your model draws from it.", JUDGE),
}
"""By kind of run: what stands at the head of the sheet, and at its foot."""
result = Console(highlight=False, markup=False, soft_wrap=True)


def main() -> int:
    args = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server is stopped then, too
    try:
        if args.install:
            return _install()
        if args.serve:
            return _serve(args.output / "comfyui")
        checks = _run(args)
    except (
        *(DemoError, InstallError, ModelsError, RejectedError, ServerError),
        *(graph.UnknownFileError, OSError),
    ) as error:
        progress.print(f"demo: error: {error}", style="red")
        return 1
    except KeyboardInterrupt:
        progress.print("demo: stopped")
        return 130
    failed = [entry.claim for entry in checks if not entry.holds]
    if failed:
        progress.print(f"demo: error: does not hold: {'; '.join(failed)}", style="red")
    return 1 if failed else 0


def read_picture(path: Path) -> Image.Image:
    """Upright, RGB, without transparency.

    Raises:
        DemoError: there is no picture that can be read.
    """
    try:
        with Image.open(path) as picture:
            return without_alpha(ImageOps.exif_transpose(picture))
    except FileNotFoundError as error:
        raise DemoError(f"there is no file {path}") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as error:
        raise DemoError(f"{path} is not a picture that can be read ({error})") from error


def _run(args: argparse.Namespace) -> Sequence[Check]:
    start = time.monotonic()
    photo = read_picture(args.image) if args.image else None
    args.output.mkdir(parents=True, exist_ok=True)
    kind = "own" if args.checkpoint else "photo" if photo else "world"
    models = None if args.checkpoint else demo_models()
    on_cpu = models is not None or not torch.accelerator.is_available()
    with tempfile.TemporaryDirectory() as folder:
        progress.print("demo: starting ComfyUI …")
        with ComfyServer(Path(folder), models=models, options=["--cpu"] if on_cpu else []) as server:
            try:
                with Client(server.url, timeout=SILENCE) as client:
                    outcome = _outcome(client, server.input, models, photo, args)
            except WebSocketException as error:
                raise ServerError(f"ComfyUI does not answer any more ({error}):\n{server.log_tail()}") from error
    head, foot = TEXTS[kind]
    sheet, page = args.output / "demo.png", args.output / "demo.html"
    write_sheet(sheet, TITLE, head, outcome.rows, foot)
    write_page(page, TITLE, head, outcome.rows, outcome.checks, foot)
    _print_table(outcome.checks)
    result.print(f"contact sheet: {sheet}, {page} ({time.monotonic() - start:.0f} s)")
    return outcome.checks


def _outcome(
    client: Client, inputs: Path, models: Path | None, photo: Image.Image | None, args: argparse.Namespace
) -> Outcome:
    if models is None:
        return show.own_models(client, inputs, photo or read_picture(OWN_DEFAULT), args.checkpoint, args.adapter)
    references.put_into(inputs, photo)
    return show.scenes(client, inputs, models, photo)


def _install() -> int:
    comfyui = Path(os.environ["COMFYUI_PATH"])
    copied = install(demo_models(), comfyui)
    for path in copied:
        result.print(f"copied {path}")
    result.print(f"The demo's models and pictures are in {comfyui}.")
    result.print(f"Its workflows are in the page's list of workflows (key W), in {SAVED.name}: open one and press Run.")
    return 0


def _serve(folder: Path) -> int:
    """Until Ctrl-C. What is drawn stays in the folder."""
    models = demo_models()
    with ComfyServer(folder, models=models, packs=PACKS, options=["--cpu", "--preview-method", "auto"]) as server:
        references.put_into(server.input)
        with Client(server.url) as client:
            client.set("Comfy.TutorialCompleted", False)  # then the page opens with its gallery
        result.print(f"ComfyUI with the demo's models: {server.url}")
        result.print(
            "It opens with the demo's workflows (later: key C, or Templates). What it draws is kept in", folder
        )
        result.print("Ctrl-C ends it.")
        server.wait()
    return 0


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
    parser.add_argument("--image", type=Path, help="reference picture (an emoji by default)")
    parser.add_argument(
        "--output", type=Path, default=Path("out"), help="folder for demo.html and demo.png (default: out)"
    )
    parser.add_argument("--checkpoint", help="a checkpoint of your ComfyUI (COMFYUI_PATH): runs the simple workflow")
    parser.add_argument("--adapter", help="an adapter of your ComfyUI, for that checkpoint")
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--install", action="store_true", help="copy models and pictures into the ComfyUI that COMFYUI_PATH names"
    )
    other.add_argument("--serve", action="store_true", help="start ComfyUI with the demo in it, until Ctrl-C")
    args = parser.parse_args()
    if (args.checkpoint is None) != (args.adapter is None):
        parser.error("--checkpoint and --adapter go together")
    if (args.install or args.serve) and (args.image or args.checkpoint):
        parser.error("--install and --serve take neither --image nor model files")
    return args


if __name__ == "__main__":
    sys.exit(main())
