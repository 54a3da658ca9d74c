"""What a file or folder is, in numbers and words: adapters, training states, runs, encoders and other models."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from ipadapter_core.encoder.choice import encoder_need
from ipadapter_core.encoder.known import EncoderSpec, encoder_from_shapes
from ipadapter_core.errors import BadInputError, UnknownCheckpointError, UnreadableFileError, UnsupportedFamilyError
from ipadapter_core.file.container import TensorFile, read_json
from ipadapter_core.file.detect import canonical_name
from ipadapter_core.file.json_text import parse_json
from ipadapter_core.file.spec import USUAL_BACKBONE
from ipadapter_core.network.adapter import build_adapter

from ..convert.errors import ConvertError
from ..convert.names import Parts, take_apart, unwrapped
from ..convert.numbers import repair_numbers
from ..convert.reading import find_state, is_state_folder, read_state
from ..models.encoder_files import find_encoder
from ..state import ADAPTER, CONFIG, COUNTERS, EMA, find_checkpoints
from .export import describe_precision
from .facts import PORTABILITY_KEY, PREPROCESS_KEY, TRAINING_KEY, read_preprocess
from .families import check_family, check_model_lora
from .invokeai import invokeai_reasons
from .portability import check_portability, other_nodes_reasons

_INDEXES = ("model_index.json", "modular_model_index.json")  # of base models
_JSON_KEYS = (PREPROCESS_KEY, TRAINING_KEY, PORTABILITY_KEY)


def inspect_path(path: Path) -> dict[str, object]:
    """Everything there is to say; `kind` comes first and is one of a few words, the rest depends on it.

    Raises:
        UnreadableFileError: a file that is missing, damaged, or no tensor file.
        BadInputError: a folder with nothing this project knows.
        MismatchError: one of timm with something else than a PE-Core.
    """
    if not os.path.isdir(path):
        return _file(path)
    if os.path.isfile(path / COUNTERS) and os.path.isfile(path / ADAPTER):
        return _checkpoint(path)
    if checkpoints := find_checkpoints(path):
        return {
            "kind": "training run",
            "checkpoints": [checkpoint.name for checkpoint in checkpoints],
            "last": _counters(checkpoints[-1]),
            "next": f"ipadapter export {path}",
        }
    if is_state_folder(path) and not os.path.isfile(path / "config.json"):
        return {"state_file": find_state(path).name, **_file(path)}
    if name := next((name for name in _INDEXES if os.path.isfile(path / name)), None):
        index = read_json(path / name, "index")
        pipeline = index.get("_class_name") if isinstance(index, dict) else None
        return {"kind": "text-to-image model", "pipeline": pipeline, "next": f'base.model = "{path}"'}
    if os.path.isfile(path / "config.json"):
        return {**_encoder(find_encoder(str(path), "encoder.model").spec), "next": f'encoder.model = "{path}"'}
    raise BadInputError(
        f"{path} is a folder with no run, training state, model or encoder in it",
        expected="a run folder, a checkpoint, a training state, a model or encoder folder, or a weight file",
        action="name a file in it",
    )


def _file(path: Path) -> dict[str, object]:
    file = read_state(path)
    about = {"bytes": find_state(path).stat().st_size, "tensors": len(file.tensors)}
    try:
        return {"kind": "adapter", **_adapter(find_state(path), file), **about}
    except UnsupportedFamilyError as error:
        return {
            "kind": "adapter that the trainer does not build",
            "what": str(error),
            **about,
            **_weights(file.tensors),
        }
    except (UnknownCheckpointError, UnreadableFileError) as error:
        parts = _parts(file.tensors)
        if parts is not None:
            return {**_convertible(path, parts, error), **about, **_weights(file.tensors)}
        encoder = encoder_from_shapes({name: tuple(tensor.shape) for name, tensor in file.tensors.items()})
        if encoder is not None:
            return {**_encoder(encoder), **about}
        if isinstance(error, UnreadableFileError):
            raise
        return {"kind": "something else", "what": str(error), **about, **_weights(file.tensors)}


def _encoder(spec: EncoderSpec) -> dict[str, object]:
    return {"kind": "image encoder", "name": spec.name, "encoder": asdict(spec)}


def _adapter(path: Path, file: TensorFile) -> dict[str, object]:
    adapter = build_adapter(file.tensors, file.metadata)
    check_family(adapter.spec)
    check_model_lora(path.name, adapter)
    spec, preprocess = adapter.spec, read_preprocess(file.metadata)
    portability = check_portability(path, adapter, preprocess)
    others, invokeai = other_nodes_reasons(spec, portability), invokeai_reasons(spec, preprocess)
    stated = {name: value for name, value in file.metadata.items() if name.startswith("modelspec.")}
    return {
        "family": spec.family,
        "base": spec.base,
        "tokens": spec.num_tokens or "one per feature",
        "sites": spec.num_sites,
        "site_widths": list(dict.fromkeys(spec.site_dims)),
        "text_width": spec.cross_attention_dim,
        "encoder": encoder_need(spec),
        "feature": spec.feature.value,
        "layer": spec.layer,
        "negative": spec.negative.value,
        "resampler": asdict(spec.resampler) if spec.resampler else None,
        **({} if spec.face is None else {"face": asdict(spec.face), "lora_rank": _rank(adapter.lora)}),
        **_weights(file.tensors),
        "loads_in": {
            "native nodes": True,
            "diffusers": not portability.reasons,
            "other ComfyUI nodes": not others,
            "InvokeAI": not invokeai,
        },
        "why_not": {
            "diffusers": list(portability.reasons),
            "other ComfyUI nodes": list(others),
            "InvokeAI": list(invokeai),
        },
        **_faults(path, file.tensors, is_unet=spec.backbone == USUAL_BACKBONE),
        "metadata": {name.removeprefix("modelspec."): value for name, value in stated.items()},
        **{key.removeprefix("ipadapter."): _json(key, file.metadata) for key in _JSON_KEYS if key in file.metadata},
    }


def _rank(lora: Mapping[str, Tensor]) -> int:
    """0 without one."""
    return max((min(tensor.shape) for tensor in lora.values()), default=0)


def _faults(path: Path, tensors: Mapping[str, Tensor], *, is_unet: bool) -> dict[str, object]:
    """What is wrong with an adapter that loads; empty if nothing is. Only a UNet's layers are numbered 1, 3, 5 …"""
    parts = _parts(tensors) if is_unet else None
    _, faults = repair_numbers(parts.sites) if parts else ({}, [])
    numbers = [
        tensor.float() if tensor.itemsize == 1 else tensor for tensor in tensors.values()
    ]  # float8 knows neither
    if not all(tensor.isfinite().all() for tensor in numbers):
        faults.append("NaN or infinite values among the weights")
    elif not any(tensor.any() for tensor in numbers):
        faults.append("all weights are 0: it changes no picture")
    elif faults:
        return {"faults": faults, "next": f"ipadapter convert {path} -o repaired.safetensors"}
    return {"faults": faults} if faults else {}


def _convertible(path: Path, parts: Parts, error: Exception) -> dict[str, object]:
    """A file that holds adapter tensors, but not as they are published."""
    next_step = f"ipadapter convert {path} -o adapter.safetensors"
    if not parts.sites:
        return {"kind": "incomplete adapter", "what": str(error), "next": f"{next_step} --state CHECKPOINT_FOLDER"}
    is_state = "state" in parts.source
    kind = "training state" if is_state else "adapter to be converted"
    return {"kind": kind, "source": parts.source, "what": str(error), "next": next_step}


def _checkpoint(folder: Path) -> dict[str, object]:
    return {
        "kind": "checkpoint of a run",
        **_counters(folder),
        "has_moving_average": os.path.isfile(folder / EMA),
        "adapter": _file(folder / ADAPTER),
        "config": str(folder / CONFIG),
        "next": f"ipadapter export {folder}",
    }


def _counters(checkpoint: Path) -> dict[str, object]:
    stated = read_json(checkpoint / COUNTERS, "state")
    if not isinstance(stated, dict) or not {"step", "samples"} <= stated.keys():
        raise UnreadableFileError(
            f"{checkpoint / COUNTERS} without step and samples",
            expected="what a run writes",
            action="choose another checkpoint of the run",
        )
    return {"step": stated["step"], "samples": stated["samples"]}


def _parts(tensors: Mapping[str, Tensor]) -> Parts | None:
    try:
        parts = take_apart({canonical_name(name): tensor for name, tensor in unwrapped(tensors).items()})
    except ConvertError:
        return None
    return parts if parts.projection else None


def _weights(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    return {"parameters": sum(map(Tensor.numel, floating.values())), "precision": describe_precision(floating)}


def _json(key: str, metadata: Mapping[str, str]) -> object:
    try:
        return parse_json(metadata[key])
    except ValueError as error:
        raise UnreadableFileError(
            f"metadata {key} that is not JSON ({error})",
            expected="what `ipadapter export` writes",
            action="export the adapter again, or remove the metadata entry",
        ) from error
