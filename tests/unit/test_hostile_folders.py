"""Encoder folders that lead elsewhere, lie about their weights or ask for programs: refused, or read as if they did not."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from ipadapter_core.encoder.folder import load_vision_folder
from ipadapter_core.errors import UnreadableFileError
from ipadapter_core.file.container import read_tensors
from ipadapter_core.file.spec import Feature
from support import hostile_folders
from support.hostile import json_text
from support.published import write_safetensors


def folder_with(place: Path, kind: str = "clip", **settings: object) -> Path:
    folder = hostile_folders.write_good(kind, place / "e")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json_text(config | settings))
    return folder


FOLDERS: dict[str, tuple[dict[str, object], str]] = {
    "code of the folder": ({"auto_map": {"AutoModel": "evil.Evil"}}, "a config.json with auto_map"),
    "a package that quantises": (
        {"quantization_config": {"quant_method": "x"}},
        "a config.json with quantization_config",
    ),
    "a width of text": ({"hidden_size": "24"}, "whose hidden_size is '24'"),
    "a true number of layers": ({"num_hidden_layers": True}, "whose num_hidden_layers is True"),
    "a thousand million layers": ({"num_hidden_layers": 10**9}, "whose num_hidden_layers is 1000000000"),
    "more layers than tensors": ({"num_hidden_layers": 1000}, "1000 layers in the config"),
    "a network larger than its files": ({"intermediate_size": 2**30}, "numbers, the files hold"),
    "a type of model that is a list": ({"model_type": ["clip"]}, "a config.json of model_type"),
    "an activation nobody knows": ({"hidden_act": "no_such"}, "no_such"),
    "other sizes than the weights": ({"intermediate_size": 40}, "transformers cannot load"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_an_encoder_folder_is_refused_for_its_config(tmp_path: Path, name: str) -> None:
    settings, phrase = FOLDERS[name]
    assert phrase in refusal(folder_with(tmp_path, **settings))


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2", "dinov2", "dinov3"])
def test_heads_that_do_not_divide_the_width_are_refused(tmp_path: Path, kind: str) -> None:
    """DINOv3 is built all the same, and fails on the first picture."""
    assert "transformers cannot load" in refusal(folder_with(tmp_path, kind, num_attention_heads=7))


INDEXES: dict[str, tuple[object, str]] = {
    "a list": (["a"], "that names no files"),
    "a map that is a list": ({"weight_map": ["a"]}, "that names no files"),
    "a file elsewhere": ({"weight_map": {"a": "../x.safetensors"}}, "that names '../x.safetensors'"),
    "an absolute path": ({"weight_map": {"a": "/etc/x.safetensors"}}, "that names '/etc/x.safetensors'"),
    "a drive": ({"weight_map": {"a": "C:x.safetensors"}}, "that names 'C:x.safetensors'"),
    "a pickle": ({"weight_map": {"a": "model.bin"}}, "that names 'model.bin'"),
    "nothing": ({"weight_map": {"a": None}}, "that names None"),
    "a shard that is not there": ({"weight_map": {"a": "gone.safetensors"}}, "no file at "),
}


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_names_files_of_its_folder(tmp_path: Path, name: str) -> None:
    index, phrase = INDEXES[name]
    folder = folder_with(tmp_path)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert phrase in refusal(folder)


def test_a_folder_without_config_or_with_the_weights_of_another_is_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "model.safetensors").write_bytes(hostile_folders.good("dinov2")["model.safetensors"])
    assert "missing" in refusal(folder)
    (folder / "config.json").unlink()
    assert "a config.json that cannot be read" in refusal(folder)


def test_preprocessor_values_nobody_can_use_are_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "dinov2")
    for wrong in (
        {"crop_size": {"height": -3}},
        {"crop_size": 10**6},
        {"image_std": [0, 1, 1]},
        {"image_mean": [1, 2]},
    ):
        (folder / "preprocessor_config.json").write_text(json.dumps(wrong))
        assert "values that cannot be used" in refusal(folder)


IGNORED: tuple[dict[str, object], ...] = (
    {"attn_implementation": "flash_attention_2"},
    {"_attn_implementation": "kernels-of/someone"},
    {"return_dict": False, "output_hidden_states": False},
)


@pytest.mark.parametrize("settings", IGNORED, ids=lambda settings: next(iter(settings)))
@pytest.mark.parametrize("kind", ["clip", "whole_clip", "siglip", "siglip2", "dinov2", "dinov3"])
def test_what_a_folder_says_about_programs_changes_nothing(
    tmp_path: Path, kind: str, settings: dict[str, object]
) -> None:
    hostile_folders.write_good(kind, tmp_path / "good")
    folder = folder_with(tmp_path, kind, **settings)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere", "peft_type": "LORA"}')
    assert torch.equal(features(folder), features(tmp_path / "good"))


def test_shards_are_the_same_encoder(tmp_path: Path) -> None:
    whole, folder = hostile_folders.write_good("clip", tmp_path / "good"), folder_with(tmp_path)
    tensors = read_tensors(folder / "model.safetensors").tensors
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"1.safetensors": names[:10], "2.safetensors": names[10:]}
    for file, part in parts.items():
        write_safetensors(folder / file, {name: tensors[name] for name in part})
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(features(folder), features(whole))


def features(folder: Path) -> Tensor:
    vision = load_vision_folder(folder, transformers)
    size = vision.pixel_format.size
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return vision.features(pixels, Feature.HIDDEN_STATES, -2)


def refusal(folder: Path) -> str:
    with pytest.raises(UnreadableFileError) as caught:
        load_vision_folder(folder, transformers)
    return str(caught.value)
