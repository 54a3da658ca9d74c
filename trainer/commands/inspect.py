"""`ipadapter inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson
from .output import emit

_LONG = ("recipe", "versions")  # of `training`; --json has them


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Any weight file or folder.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Say what a file is: which adapter, for which base and encoder, and which programs load it.

    Also knows training states, runs and checkpoints, image encoders, and other models that lie in the same folders.

    Example: `ipadapter inspect ip-adapter-plus_sd15.safetensors`
    """
    from ..files.inspection import inspect_path

    result = inspect_path(file)
    training = result.get("training")
    if not as_json and isinstance(training, dict):
        result["training"] = {name: value for name, value in training.items() if name not in _LONG}
    preprocess = result.get("preprocess")
    if not as_json and isinstance(preprocess, dict):
        result["preprocess"] = preprocess | {"size": f"{preprocess['size']} pixels"}
    emit(result, as_json)
