"""A name that comes over a wire is checked by no widget: the nodes say what it could be."""

from collections.abc import Callable
from pathlib import Path

import pytest

from legacy.apply_fixtures import adapter
from legacy.running import clip_vision, outputs, random_image

RANGE = {"start_at": 0.0, "end_at": 1.0}


def test_weight_type_of_the_simple_node(base_directory: Path, model: Callable) -> None:
    raw = adapter(base_directory, "sdxl").payload
    pipeline = {"ipadapter": {"file": "", "model": raw}, "clipvision": {"file": "", "model": clip_vision()}}
    inputs = {"model": model("sdxl"), "ipadapter": pipeline, "image": random_image(1, 32, 32), "weight": 1.0} | RANGE
    with pytest.raises(ValueError, match=r"weight type 'linear'.*standard, prompt is more important, style transfer"):
        outputs("IPAdapter", **inputs, weight_type="linear")


@pytest.mark.parametrize("node_id", ["IPAdapterUnifiedLoader", "IPAdapterUnifiedLoaderCommunity"])
def test_presets(base_directory: Path, model: Callable, node_id: str) -> None:
    with pytest.raises(ValueError, match=r"preset 'BEST'.*What to do: choose one of them"):
        outputs(node_id, model=model("sdxl"), preset="BEST")


def test_face_preset(base_directory: Path, model: Callable) -> None:
    with pytest.raises(ValueError, match=r"preset 'BEST'.*FACEID PLUS V2"):
        outputs("IPAdapterUnifiedLoaderFaceID", model=model("sdxl"), preset="BEST", lora_strength=0.0, provider="CPU")
