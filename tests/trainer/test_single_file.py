"""A base in a single file, in its original names, is the base that its folder in diffusers layout is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.ldm_names import write_single_file
from trainer.config import BaseModelConfig
from trainer.models.base import Base, load_base

CPU = torch.device("cpu")
CAPTIONS = ["a red cat", ""]
# name: layout of the folder, what it predicts, and whether its text encoder has SD2.x's names
MODELS = {"sd15": ("sd15", "epsilon", False), "sdxl": ("sdxl", "epsilon", False), "sd2": ("sd15", "v_prediction", True)}


def load(model: Path, **settings: Any) -> Base:
    return load_base(BaseModelConfig(model=str(model), **{"precision": "fp32", **settings}), CPU)


@pytest.fixture(scope="module")
def single_file(tmp_path_factory: pytest.TempPathFactory, base_folder: Callable[..., Path]) -> Callable[[str], Any]:
    """(file, folder of the same model), by name of the model."""
    folder = tmp_path_factory.mktemp("single")

    def make(name: str) -> tuple[Path, Path]:
        layout, prediction_type, open_clip = MODELS[name]
        source, path = base_folder(layout, prediction_type), folder / f"{name}.safetensors"
        if not path.is_file():
            write_single_file(source, path, open_clip=open_clip)
        return path, source

    return make


def same_weights(one: Any, other: Any) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", MODELS)
def test_is_the_model_of_the_folder(single_file: Callable, name: str) -> None:
    path, folder = single_file(name)
    single, whole = load(path, config=str(folder)), load(folder)
    assert type(single.pipeline) is type(whole.pipeline)
    assert same_weights(single.unet, whole.unet)
    assert same_weights(single.vae, whole.vae)
    for one, other in zip(single.texts, whole.texts, strict=True):
        assert same_weights(one.model, other.model)
    assert dict(single.schedule.config) == dict(whole.schedule.config)
    assert single.schedule.config.prediction_type == MODELS[name][1]
    assert (single.vae_id, single.text_id) == (whole.vae_id, whole.text_id)
    text, pooled = single.encode_text(CAPTIONS)
    expected, expected_pooled = whole.encode_text(CAPTIONS)
    assert torch.equal(text, expected)
    assert pooled is expected_pooled is None or torch.equal(pooled, expected_pooled)
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(single.encode_pixels(pixels)[0], whole.encode_pixels(pixels)[0])
    assert torch.equal(single.scale_latents(torch.ones(1)), whole.scale_latents(torch.ones(1)))
