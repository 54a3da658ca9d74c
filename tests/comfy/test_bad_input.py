"""Every mistake gets one message that says what was found, what was expected and what to do, and patches nothing."""

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host, encoders
from support.bad_files import BAD_FILES, code_marker
from support.graphs import PLAIN
from support.published import random_tensors, tiny_adapter, write_safetensors

DATA_ONLY = {"weight_with_nan", "weight_with_infinity"}  # whole files; their weights show when they are used


def message_of(node_id: str, **inputs: Any) -> str:
    with pytest.raises(ValueError, match="Found: ") as error:
        comfy_host.run(node_id, **inputs)
    message = str(error.value)
    assert ". Expected: " in message
    assert ". What to do: " in message
    return message


@pytest.mark.parametrize("kind", sorted(set(BAD_FILES) - DATA_ONLY))
def test_bad_adapter_files(base_directory: Path, kind: str) -> None:
    folder = base_directory / "models" / "ipadapter" / "bad"
    folder.mkdir(exist_ok=True)
    try:
        path = BAD_FILES[kind](folder)
        message_of("IPALoadAdapter", adapter_file=f"bad/{path.name}", image_encoder="none")
        assert not code_marker(folder).exists()
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def setting(model: Callable, make_adapter: Callable, make_tokens: Callable) -> dict[str, Any]:
    adapter = make_adapter("base", "sd15")
    return {"model": model("sd15"), "adapter": adapter.loaded, "tokens": make_tokens(adapter)} | PLAIN


@pytest.mark.parametrize(("adapter_of", "model_of"), [("sdxl", "sd15"), ("sd15", "sdxl")])
def test_an_adapter_for_another_model(
    setting: dict, model: Callable, make_adapter: Callable, make_tokens: Callable, adapter_of: str, model_of: str
) -> None:
    adapter = make_adapter("base", adapter_of)
    target = model(model_of)
    message = message_of(
        "IPAApply", **setting | {"model": target, "adapter": adapter.loaded, "tokens": make_tokens(adapter)}
    )
    assert f"{adapter.loaded.spec.num_sites} attention layers" in message
    assert "patches_replace" not in target.model_options["transformer_options"]


def test_tokens_of_another_adapter(setting: dict, make_adapter: Callable, make_tokens: Callable) -> None:
    other = make_adapter("base", "sd15", seed=9)
    assert "another adapter made" in message_of("IPAApply", **setting | {"tokens": make_tokens(other)})


def test_a_model_without_cross_attention(setting: dict) -> None:
    import comfy.model_patcher

    class Plain(torch.nn.Module):
        diffusion_model = torch.nn.Linear(2, 2)

    cpu = torch.device("cpu")
    flux_like = comfy.model_patcher.ModelPatcher(Plain(), load_device=cpu, offload_device=cpu)
    assert "without cross-attention" in message_of("IPAApply", **setting | {"model": flux_like})


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"start_percent": 0.8, "end_percent": 0.2}, "acts from 0.8 to 0.2 of the sampling"),
        ({"start_percent": -0.5}, "acts from -0.5 to 1 of the sampling"),
        ({"layer_preset": "linear"}, "layer preset 'linear'"),
        ({"mask": torch.full((1, 8, 8), 1.5)}, "values from 1.5 to 1.5"),
        ({"mask": torch.tensor([[[-0.2, 0.5]]])}, "values from -0.2 to 0.5"),
        ({"mask": torch.full((1, 8, 8), math.nan)}, "NaN"),
        ({"mask": torch.ones(1, 8, 8, 3)}, "shape [1, 8, 8, 3]"),
        ({"mask": torch.ones(0, 8, 8)}, "shape [0, 8, 8]"),
    ],
)
def test_settings_and_masks(setting: dict, change: dict, found: str) -> None:
    assert found in message_of("IPAApply", **setting | change)


def test_layer_weights_for_layers_that_are_not_there(setting: dict) -> None:
    groups = dict.fromkeys(("input", "middle", "output", "style", "composition"), 1.0)
    weights = comfy_host.run("IPALayerWeights", site_factors="99: 0", **groups)
    message = message_of("IPAApply", **setting | {"layer_weights": weights})
    assert "layer weight for 99-99" in message
    assert "'x'" in message_of("IPALayerWeights", site_factors="x", **groups)


def test_a_mask_of_zeros_says_that_nothing_happens(setting: dict, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert comfy_host.run("IPAApply", **setting | {"mask": torch.zeros(1, 4, 4)}) is setting["model"]
    assert "its mask is all zero" in caplog.text


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (640, 7)])
@pytest.mark.parametrize("masks", [1, 3, 5])
def test_masks_of_any_size_and_batch_are_taken(setting: dict, sample: Callable, size: tuple, masks: int) -> None:
    patched = comfy_host.run("IPAApply", **setting | {"mask": torch.rand(masks, *size)})
    assert sample(patched, steps=1, batch=3).isfinite().all()


@pytest.fixture
def encoder_setting(base_directory: Path) -> Any:
    folder = base_directory / "models" / "clip_vision" / "small"
    encoders.write_folder("clip", folder)
    shapes = tiny_adapter("plus", site_dims=(32,), image_dim=encoders.WIDTH, head_dim=64, heads=1)
    write_safetensors(base_directory / "models" / "ipadapter" / "small.safetensors", random_tensors(shapes))
    adapter = comfy_host.run("IPALoadAdapter", adapter_file="small.safetensors", image_encoder="auto")
    yield {"adapter": adapter, "image": torch.rand(1, 20, 20, 3), "crop": "center"}
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"image": torch.full((1, 20, 20, 3), math.nan)}, "NaN"),
        ({"image": torch.rand(1, 20, 20, 2)}, "shape [1, 20, 20, 2]"),
        ({"image": torch.rand(0, 20, 20, 3)}, "shape [0, 20, 20, 3]"),
        ({"crop": "fill"}, "crop 'fill'"),
        ({"mask": torch.zeros(1, 20, 20)}, "all zero"),
        ({"mask": torch.full((1, 20, 20), 2.0)}, "values from 2 to 2"),
        ({"mask": torch.ones(3, 20, 20)}, "3 reference masks for 1"),
        ({"negative_image": torch.full((1, 20, 20, 3), math.inf)}, "infinite"),
    ],
)
def test_images(encoder_setting: dict, change: dict, found: str) -> None:
    assert found in message_of("IPAEncodeImage", **encoder_setting | change)


@pytest.mark.parametrize(
    ("image", "warning"),
    [
        (torch.rand(1, 20, 20, 4), "alpha channel"),
        (torch.rand(1, 1, 1, 3), "only 1 x 1 pixels"),
        (torch.rand(1, 20, 20, 1), ""),
    ],
    ids=["alpha", "one pixel", "grey"],
)
def test_unusual_images_are_taken_with_a_word(
    encoder_setting: dict, image: torch.Tensor, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        tokens = comfy_host.run("IPAEncodeImage", **encoder_setting | {"image": image})
    assert tokens.cond.isfinite().all()
    assert warning in caplog.text
    assert bool(warning) == bool(caplog.text)


def test_no_encoder_where_one_is_needed(encoder_setting: dict) -> None:
    adapter = comfy_host.run("IPALoadAdapter", adapter_file="small.safetensors", image_encoder="none")
    message = message_of("IPAEncodeImage", **encoder_setting | {"adapter": adapter})
    assert "without an image encoder" in message
    assert "24-wide hidden states" in message


def test_a_connected_encoder_of_the_wrong_width(encoder_setting: dict, tmp_path: Path) -> None:
    import comfy.clip_vision

    config = {"model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"intermediate_size": 64, "hidden_act": "gelu", "image_size": 28, "patch_size": 14, "num_channels": 3}
    (tmp_path / "config.json").write_text(json.dumps(config | {"projection_dim": 16}))
    clip_vision = comfy.clip_vision.ClipVisionModel(str(tmp_path / "config.json"))
    message = message_of("IPAEncodeImage", **encoder_setting | {"clip_vision": clip_vision})
    assert "CLIP of width 32, 2 layers, which gives 32-wide hidden states" in message


@pytest.mark.parametrize("weights", ["1", "1, 2, 3", "a, b", "nan, 1"])
def test_combination_weights(make_adapter: Callable, make_tokens: Callable, weights: str) -> None:
    adapter = make_adapter("base", "sd15")
    parts = {"tokens0": make_tokens(adapter), "tokens1": make_tokens(adapter, seed=1)}
    assert "weights" in message_of("IPACombineTokens", tokens=parts, method="average", weights=weights)


@pytest.mark.parametrize("kind", sorted(DATA_ONLY))
def test_damaged_weights_are_found_before_anything_is_patched(kind: str, base_directory: Path, setting: dict) -> None:
    adapters = base_directory / "models" / "ipadapter"
    good = BAD_FILES[kind](adapters)
    loaded = comfy_host.run("IPALoadAdapter", adapter_file=good.name, image_encoder="none")
    with pytest.raises(ValueError, match=r"damaged"):
        use_weights(loaded)


def use_weights(adapter: Any) -> None:
    """What the nodes do with a network: make tokens, then keys and values."""
    cond, uncond = (adapter.network.project(fill(1, adapter.spec.image_dim)) for fill in (torch.ones, torch.zeros))
    tokens = comfy_host.pack("ipadapter_core.branch.tokens").ImageTokens(cond, uncond, adapter.adapter_id)
    comfy_host.pack("ipadapter_core.branch.kv").project_tokens(adapter.network, tokens, torch.device("cpu"))
