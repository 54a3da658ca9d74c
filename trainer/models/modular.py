"""Opening a base model that diffusers has in modular layout alone: Anima."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimaAutoBlocks,
    AnimaTextConditioner,
    AutoencoderKLQwenImage,
    CosmosTransformer3DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.modular_pipelines.anima.modular_pipeline import AnimaModularPipeline
from transformers import Qwen2Tokenizer, Qwen3Model, T5TokenizerFast

from ipadapter_core.errors import MismatchError
from ipadapter_core.file.container import read_json

from ..hub import ModelNotFoundError

INDEX = AnimaModularPipeline.config_name
FILES = (INDEX, "*.json", "*.safetensors", "*.txt", "*.model")
"""Patterns of what a repository has of it."""
# part of `load_base`: name and class of what it takes; None is always taken
_PARTS: tuple[tuple[str | None, str, Any], ...] = (
    (None, "scheduler", FlowMatchEulerDiscreteScheduler),
    ("model", "transformer", CosmosTransformer3DModel),
    ("vae", "vae", AutoencoderKLQwenImage),
    ("text", "tokenizer", Qwen2Tokenizer),
    ("text", "t5_tokenizer", T5TokenizerFast),
    ("text", "text_encoder", Qwen3Model),
    ("text", "text_conditioner", AnimaTextConditioner),
)
_WORDS = frozenset({Qwen2Tokenizer, T5TokenizerFast, FlowMatchEulerDiscreteScheduler})  # which have no weights


def is_modular(folder: str) -> bool:
    """Whether it has no other layout: some models of the usual one are described in this way as well."""
    has_modular, has_usual = (os.path.isfile(Path(folder) / name) for name in (INDEX, DiffusionPipeline.config_name))
    return has_modular and not has_usual


def open_anima(
    folder: str,
    dtype: torch.dtype,
    only: frozenset[str],
    vae: Any,
    quantizing: Mapping[str, Any] | None,
) -> AnimaModularPipeline:
    """The pipeline in a folder, of classes that are known here: its index may name others, and repositories.

    Args:
        only: as `load_base` has it.
        vae: taken in place of the folder's; None is the folder's, if `only` has it.
        quantizing: how its transformer is quantised.

    Raises:
        MismatchError: a pipeline of another kind.
        ModelNotFoundError: a part is not in the folder.
    """
    index = read_json(Path(folder) / INDEX, "index")
    named = index.get("_class_name") if isinstance(index, dict) else None
    if named != AnimaModularPipeline.__name__:
        raise MismatchError(
            f"{folder} is a {named}, a modular pipeline of diffusers",
            expected=f"{AnimaModularPipeline.__name__}, the only modular one that is trained",
            action="choose an Anima, or another model in diffusers' usual layout (model_index.json), as base.model",
        )
    parts: dict[str, Any] = {} if vae is None else {"vae": vae}
    for kind, name, part in _PARTS:
        if name in parts or (kind is not None and kind not in only):
            continue
        if not (Path(folder) / name).is_dir():
            raise ModelNotFoundError(
                f"{folder} without {name}",
                expected=f"a folder with all of {', '.join(name for _, name, _ in _PARTS)}",
                action="save the whole pipeline there: ModularPipeline.load_components and save_pretrained",
            )
        how: dict[str, Any] = {} if part in _WORDS else {"torch_dtype": dtype}
        if name == "transformer" and quantizing is not None:
            how = dict(quantizing)
        parts[name] = part.from_pretrained(str(Path(folder) / name), **how)
    pipeline = AnimaAutoBlocks().init_pipeline()
    for _, name, _ in _PARTS:
        setattr(pipeline, name, parts.get(name))
    return pipeline
