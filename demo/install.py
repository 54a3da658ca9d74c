"""The demo's models, reference pictures and workflows, put where a ComfyUI of the user's finds them."""

import filecmp
import shutil
from functools import partial
from pathlib import Path

from demo.references import FILES, path_of
from demo.scenes import SCENES
from demo.server import MODEL_FOLDERS
from ipadapter_core.file.container import write_aside

SAVED = Path("user", "default", "workflows", "IP-Adapter Studio demo")  # a folder of the page's list of workflows


class InstallError(Exception):
    """Files are in the way; the message names them."""


def install(models: Path, comfyui: Path) -> list[Path]:
    """Copy models, pictures and workflows into a ComfyUI; nothing is overwritten.

    Args:
        models: the demo's models folder.

    Returns:
        What was copied; what was there already is left out.

    Raises:
        InstallError: other files have these names already. Nothing was copied then.
    """
    targets = {
        comfyui / "models" / file.relative_to(models): file
        for name in MODEL_FOLDERS
        for file in sorted((models / name).rglob("*"))
        if file.is_file()
    }
    targets |= {comfyui / "input" / file: path_of(file) for file in FILES}
    targets |= {comfyui / SAVED / scene.path.name: scene.path for scene in SCENES}
    there = [target for target in targets if target.exists()]
    different = [str(target) for target in there if not filecmp.cmp(target, targets[target], shallow=False)]
    if different:
        raise InstallError(f"other files are in the way, move or rename them: {', '.join(different)}")
    copied = [target for target in targets if target not in there]
    for target in copied:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_aside(target, partial(shutil.copyfile, targets[target]))
    return copied
