"""A transformer in a single file under its original names, as ComfyUI reads it; all else comes from a folder of its kind."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeVar, cast

import diffusers
import torch
from safetensors.torch import load_file

from ipadapter_core.errors import MismatchError
from ipadapter_core.file.container import read_json

from ..hub import ModelNotFoundError
from .outline import outline

PART = "transformer"
_PREFIX = "model.diffusion_model."  # of files that ComfyUI has saved
_KNOWN = {  # class of diffusers: a part of a name that its original files have, and what is called so
    "FluxTransformer2DModel": ("double_blocks.0.", "FLUX.1"),
    "SD3Transformer2DModel": ("joint_blocks.0.", "SD3 or SD3.5"),
    "ZImageTransformer2DModel": ("cap_embedder.", "Z-Image"),
    "QwenImageTransformer2DModel": ("transformer_blocks.0.attn.add_q_proj.", "Qwen-Image"),
}
_SCALES = ("scale_weight", "weight_scale", "scaled_fp8", "comfy_quant", ".absmax", "quant_map")
"""Parts of names that only files in few bits have: numbers that diffusers would leave out."""
_WITHOUT_PLACE = ("norm_final.weight",)  # of Z-Image, which diffusers has no use for
_Tensor = TypeVar("_Tensor")


def class_of(folder: Path) -> str | None:
    """Of the transformer of a folder in diffusers layout; None if it is one of another kind, a UNet's for instance."""
    file = folder / PART / "config.json"
    settings = read_json(file, "config") if file.is_file() else None
    named = settings.get("_class_name") if isinstance(settings, dict) else None
    return str(named) if named in _KNOWN else None


def check_transformer_file(file: Path, header: Mapping[str, Mapping[str, object]], kind: str, folder: Path) -> None:
    """Args: folder: whose config describes it.

    Raises:
        ModelNotFoundError: the file has no such transformer, or more of one than is described.
        MismatchError: its weights are in few bits.
    """
    sign, words = _KNOWN[kind]
    inside = _inside({name: tensor for name, tensor in header.items() if name != "__metadata__"})
    if not any(sign in name for name in inside):
        raise ModelNotFoundError(
            f"{file} without a transformer of {words} (no tensor is called …{sign}…)",
            expected="the model that base.config describes, in its original names",
            action="correct base.model, or name a folder of the same kind of model as base.config",
        )
    if any(part in name for name in inside for part in _SCALES):
        raise MismatchError(
            f"{file}, whose weights are kept in few bits with scales beside them",
            expected="plain weights in bf16, fp16, fp32 or fp8 without scales",
            action='take the file in bf16, and set base.quantization = "fp8" for as little memory',
        )
    described = sum(tensor.numel() for tensor in outline(str(folder), PART).state_dict().values())
    there = sum(
        prod(cast("list[int]", tensor["shape"])) for name, tensor in inside.items() if name not in _WITHOUT_PLACE
    )
    if there > described:  # of which diffusers would leave out the rest
        raise ModelNotFoundError(
            f"{file}, which has more weights than {folder} describes ({there:,}, not {described:,})",
            expected="base.config of the same model: FLUX.1-dev and schnell each have their own, as have sizes of a model",
            action="name a folder or repository of the very model that the file is, or is made from",
        )


def _inside(tensors: Mapping[str, _Tensor]) -> dict[str, _Tensor]:
    """Those of the transformer, by the names that they have in files of it alone."""
    inside = {name: tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)} or tensors
    return {name.removeprefix(_PREFIX): tensor for name, tensor in inside.items()}


def open_transformer(file: Path, kind: str, folder: str, dtype: torch.dtype) -> Any:
    """Args: folder: whose config describes it."""
    named = _inside(load_file(file))
    if kind == "FluxTransformer2DModel":  # newer ComfyUI calls weights of norms otherwise than its makers
        named = {name.replace("_norm.weight", "_norm.scale"): tensor for name, tensor in named.items()}
    model: Any = getattr(diffusers, kind)
    return model.from_single_file(named, config=folder, subfolder=PART, torch_dtype=dtype)
