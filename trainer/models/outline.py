"""A frozen model's layers without their weights: what can be asked of it where only what encodes is loaded."""

from typing import Any, cast

import diffusers
import torch
from diffusers import ModelMixin

from ipadapter_core.errors import MismatchError
from ipadapter_core.file.container import read_json

from ..hub import find_folder


def outline(model: str, part: str) -> Any:
    """The diffusion model of a folder or hub id in diffusers layout, on the meta device.

    Args:
        part: its name in the pipeline.

    Raises:
        ModelNotFoundError: the hub does not have it.
        MismatchError: it is of no class of diffusers.
        UnreadableFileError: it has no config, or one that is none.
    """
    folder = find_folder(model, "base.model", (f"{part}/config.json",), "a folder in diffusers layout")
    config = read_json(folder / part / "config.json", "config")
    named = config.get("_class_name") if isinstance(config, dict) else None
    kind = getattr(diffusers, str(named), None)
    if not (isinstance(kind, type) and issubclass(kind, ModelMixin)):
        raise MismatchError(
            f"{model}, whose {part} is a {named}",
            expected="a model of diffusers",
            action="choose another base.model",
        )
    with torch.device("meta"):
        return cast(Any, kind).from_config(config).requires_grad_(False)
