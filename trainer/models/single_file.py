"""Which single file `base.model` names, and whether what a run needs is in it: known by its header."""

import os
from pathlib import Path

from ipadapter_core.errors import UnreadableFileError
from ipadapter_core.file.container import SAFETENSORS_SUFFIXES, read_header

from ..config import BaseModelConfig
from ..hub import HubPlace, ModelNotFoundError, find_file, find_folder
from .transformer_file import check_transformer_file, class_of

KIND = "base model"  # in messages
DESCRIPTION = ("*.json", "*.txt", "*.model")
"""Files of a repository that say what a model is, and its tokenizers."""
FORMS = "a folder in diffusers layout (model_index.json), a single .safetensors file, or a hub repository"

_ANIMA_KEY = "llm_adapter.blocks.0."
_PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_FILE_PARTS = {  # what a single file has, and how the names of it start
    "model": ("a UNet", ("model.diffusion_model.",)),
    "vae": ("an autoencoder", ("first_stage_model.", "vae.")),
    "text": ("a text encoder", ("cond_stage_model.", "conditioner.embedders.")),
}


def single_file(config: BaseModelConfig, parts: frozenset[str]) -> Path | None:
    """The file that base.model names, known by its header to hold the parts; None if it names no file.

    Raises:
        ModelNotFoundError: it does not.
    """
    path, place = Path(config.model), HubPlace.of(config.model)
    if place is not None and place.inside.endswith(SAFETENSORS_SUFFIXES):
        path = find_file(config.model, "base.model", FORMS)
    if os.path.isdir(path) or not (os.path.isfile(path) or path.suffix in (*SAFETENSORS_SUFFIXES, *_PICKLED)):
        return None
    if not os.path.isfile(path):
        raise ModelNotFoundError(
            f"base.model = {config.model!r}, which does not exist", expected=FORMS, action="correct base.model"
        )
    if path.suffix not in SAFETENSORS_SUFFIXES:
        raise ModelNotFoundError(
            f"base.model = {config.model!r}, which is no safetensors file",
            expected="safetensors; a pickled checkpoint may run code and is not opened",
            action="use a copy in safetensors, or convert it where you trust it",
        )
    try:
        header = read_header(path, KIND)
    except UnreadableFileError as error:
        raise ModelNotFoundError(
            f"{config.model} is damaged, or no safetensors file in spite of its name",
            expected="a complete safetensors file",
            action="download it again and compare its size with the source",
        ) from error
    if any(_ANIMA_KEY in name for name in header):
        raise ModelNotFoundError(
            f"{config.model}, a single file of Anima",
            expected="Anima as a folder or repository in diffusers' modular layout, such as "
            "circlestone-labs/Anima-Base-v1.0-Diffusers",
            action="name such a one; scripts/convert_anima_to_diffusers.py of diffusers makes it of a finetune",
        )
    if config.config is None:
        raise ModelNotFoundError(
            f"the single file {config.model} without base.config",
            expected="base.config: a folder in diffusers layout or a hub id whose configs and tokenizer describe it",
            action="set it, for instance to stable-diffusion-v1-5/stable-diffusion-v1-5, "
            "stabilityai/stable-diffusion-xl-base-1.0 or black-forest-labs/FLUX.1-dev",
        )
    described = described_by(config)
    if (kind := class_of(described)) is not None:
        check_transformer_file(path, header, kind, described)
        return path
    for part, (what, starts) in _FILE_PARTS.items():
        if part in parts and not any(name.startswith(starts) for name in header):
            raise ModelNotFoundError(
                f"{config.model} without {what} (no tensor is called {starts[0]}…)",
                expected="a whole checkpoint in its original names: UNet, autoencoder and text encoder",
                action="choose such a file, or a folder in diffusers layout; base.vae may name another autoencoder; for a "
                "file of FLUX.1, SD3.5, Z-Image or Qwen-Image name a folder of that model as base.config",
            )
    return path


def described_by(config: BaseModelConfig) -> Path:
    """The folder that describes a single file; of the hub, a copy of its descriptions."""
    assert config.config is not None
    return find_folder(config.config, "base.config", DESCRIPTION, "a folder or hub id in diffusers layout")
