"""Mutated folders of image encoders: config, index, preprocessor, weights, and what lies where a file should."""

import json
import os
import random
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from . import encoders, hostile_safetensors
from .hostile import PLACES, VALUES, changed_bytes, changed_json, json_text

_PREPROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 28, "width": 28}, "crop_size": 28}
_ODD_SETTINGS: tuple[dict[str, Any], ...] = (
    {"auto_map": {"AutoModel": "evil.Evil"}, "trust_remote_code": True},
    {"attn_implementation": "flash_attention_2"},
    {"_attn_implementation": "not/there"},
    {"_attn_implementation_internal": "flex_attention"},
    {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    {"torch_dtype": "float4"},
    {"dtype": "os.system"},
    {"num_hidden_layers": 10**9},
    {"hidden_size": 2**17, "intermediate_size": 2**30},
    {"image_size": 10**6},
    {"patch_size": 1},
    {"hidden_act": "no_such"},
    {"num_attention_heads": 0},
    {"num_attention_heads": 7},
    {"intermediate_size": -5},
    {"num_channels": 2**40},
    {"model_type": "bert"},
    {"architectures": 3},
    {"pruned_heads": {"0": [0, 1]}},
    {"_name_or_path": "../../elsewhere", "id2label": {"a": 1}},
    {"return_dict": False, "output_hidden_states": False, "torchscript": True},
    {"layer_norm_eps": "x"},
    {"tie_word_embeddings": [], "is_decoder": "yes"},
)


@lru_cache
def good(kind: str) -> dict[str, bytes]:
    """Files of a small encoder folder."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        encoders.write_folder(kind, Path(place))
        return {path.name: path.read_bytes() for path in Path(place).iterdir()}


def write_good(kind: str, folder: Path) -> Path:
    folder.mkdir()
    for name, content in good(kind).items():
        (folder / name).write_bytes(content)
    return folder


def write_mutated(draw: random.Random, folder: Path) -> str:
    """Write a damaged form of an encoder folder; returns what was done to it."""
    write_good(draw.choice(list(encoders.FOLDERS)), folder)
    name = draw.choice(list(MUTATIONS))
    MUTATIONS[name](draw, folder)
    return name


def _config(draw: random.Random, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    _write(folder / "config.json", changed_json(draw, config))


def _settings(draw: random.Random, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config.get("vision_config")):
        if isinstance(part, dict):
            part.update(draw.choice(_ODD_SETTINGS))
    _write(folder / "config.json", config)


def _sizes(draw: random.Random, folder: Path) -> None:
    """Sizes that do not fit the weights."""
    config = json.loads((folder / "config.json").read_text())
    part = config.get("vision_config") or config
    name = draw.choice([name for name, value in part.items() if isinstance(value, int)])
    part[name] = draw.choice((0, 1, 2, 5, 7, 23, 48, 100, 1000, 2**17, 2**40, -1, 1.5, True))
    _write(folder / "config.json", config)


def _index(draw: random.Random, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = hostile_safetensors.taken_apart((folder / "model-00001-of-00001.safetensors").read_bytes())[0]
    index: dict[str, Any] = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    elsewhere = (
        "../x.safetensors",
        "/etc/passwd",
        "gone.safetensors",
        "a/b.safetensors",
        "C:x.safetensors",
        "",
        "a\0.safetensors",
        3,
    )
    change = draw.randrange(4)
    if change == 0:
        index["weight_map"][draw.choice(list(names))] = draw.choice(elsewhere)
    elif change == 1:
        index = changed_json(draw, index)
    elif change == 2:
        index["weight_map"] = draw.choice(VALUES)
    whole: object = index if change < 3 else draw.choice(VALUES)
    _write(folder / "model.safetensors.index.json", whole)


def _preprocessor(draw: random.Random, folder: Path) -> None:
    _write(
        folder / "preprocessor_config.json",
        changed_json(draw, _PREPROCESSOR) if draw.random() < 0.8 else draw.choice(VALUES),
    )


def _weights(draw: random.Random, folder: Path) -> None:
    path = folder / "model.safetensors"
    hostile_safetensors.write_mutated(draw, path, path.read_bytes())


def _other_weights(draw: random.Random, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(good(draw.choice(list(encoders.FOLDERS)))["model.safetensors"])


def _places(draw: random.Random, folder: Path) -> None:
    path = folder / draw.choice(
        ("config.json", "model.safetensors", "model.safetensors.index.json", "preprocessor_config.json")
    )
    path.unlink(missing_ok=True)
    if draw.random() < 0.8:
        draw.choice(PLACES)(path)


def _bytes(draw: random.Random, folder: Path) -> None:
    path = folder / draw.choice(("config.json", "model.safetensors"))
    path.write_bytes(changed_bytes(draw, path.read_bytes()))


def _strangers(draw: random.Random, folder: Path) -> None:
    """Files that libraries look for beside a model."""
    names = (
        "adapter_config.json",
        "generation_config.json",
        "configuration_evil.py",
        "model.py",
        "pytorch_model.bin",
        "quant.json",
    )
    _write(
        folder / draw.choice(names),
        {"base_model_name_or_path": "/elsewhere", "peft_type": "LORA", "auto_map": {"A": "b.C"}},
    )


def _alone(draw: random.Random, folder: Path) -> None:
    for path in list(folder.iterdir()):
        if draw.random() < 0.5:
            path.unlink()
    if draw.random() < 0.3:
        shutil.rmtree(folder)
        os.symlink("folder", folder)


def _write(path: Path, value: object) -> None:
    path.write_bytes(json_text(value).encode("utf-8", "surrogatepass"))


MUTATIONS: dict[str, Callable[[random.Random, Path], None]] = {
    "config": _config,
    "settings": _settings,
    "sizes": _sizes,
    "index": _index,
    "preprocessor": _preprocessor,
    "weights": _weights,
    "other weights": _other_weights,
    "places": _places,
    "bytes": _bytes,
    "strangers": _strangers,
    "alone": _alone,
}
