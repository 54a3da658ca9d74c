"""Nothing is encoded twice: what changes a picture's features, and what does not."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support import comfy_host, encoders, tiny_unet
from support.graphs import PLAIN
from support.published import random_tensors, tiny_adapter, write_safetensors


@pytest.fixture
def studio(base_directory: Path, unet: Callable, model: Callable) -> Iterator[SimpleNamespace]:
    """A plus adapter with its encoder, loaded by the node, and a count of the encoder's calls."""
    folder = base_directory / "models" / "clip_vision" / "studio"
    encoders.write_folder("clip", folder)
    shapes = tiny_adapter(
        "plus", site_dims=tiny_unet.site_dims(unet("sd15")), image_dim=encoders.WIDTH, head_dim=64, heads=1
    )
    adapters = base_directory / "models" / "ipadapter"
    write_safetensors(adapters / "studio.safetensors", random_tensors(shapes))
    padded = {"ipadapter.spec": json.dumps({"encoder": {"crop": "pad"}})}
    write_safetensors(adapters / "padded.safetensors", random_tensors(shapes), padded)
    adapter = comfy_host.run("IPALoadAdapter", adapter_file="studio.safetensors", image_encoder="auto")
    comfy_host.pack("nodes.cache").CACHE.clear()
    calls: list[int] = []
    vision = adapter.encoder.patcher.model["vision"]
    hook = vision.register_forward_hook(lambda *_: calls.append(1))
    projections: list[int] = []
    adapter.network.site(0).to_k_ip.register_forward_hook(lambda *_: projections.append(1))
    picture = torch.rand(1, 40, 30, 3, generator=torch.Generator().manual_seed(0))
    yield SimpleNamespace(
        adapter=adapter, calls=calls, projections=projections, picture=picture, model=model("sd15"), folder=folder
    )
    hook.remove()
    shutil.rmtree(folder)


def encode(studio: SimpleNamespace, **inputs: Any) -> Any:
    return comfy_host.run(
        "IPAEncodeImage", **({"adapter": studio.adapter, "image": studio.picture, "crop": "center"} | inputs)
    )


def apply_image(studio: SimpleNamespace, **settings: Any) -> Any:
    inputs = {"model": studio.model, "adapter": studio.adapter, "image": studio.picture.clone()} | PLAIN | settings
    return comfy_host.run("IPAApplyImage", **inputs)


CHANGES = {
    "strength": {"strength": 0.5},
    "range": {"end_percent": 0.5},
    "preset": {"layer_preset": "style"},
    "mask": {"mask": torch.tensor([[[0.0, 1.0]]])},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_encodes_and_projects_nothing(studio: SimpleNamespace, change: str) -> None:
    apply_image(studio)
    assert len(studio.calls) == 2, "the picture, and no picture"
    assert len(studio.projections) == 1
    apply_image(studio, **CHANGES[change])
    assert len(studio.calls) == 2
    assert len(studio.projections) == 1


def test_both_routes_share_features_and_give_the_same_patch(studio: SimpleNamespace, sample: Callable) -> None:
    direct = apply_image(studio)
    tokens = encode(studio)
    assert len(studio.calls) == 2
    split = comfy_host.run("IPAApply", model=studio.model, adapter=studio.adapter, tokens=tokens, **PLAIN)
    assert torch.equal(sample(direct), sample(split))


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"crop": "pad"}, 1),
        ({"image": torch.zeros(1, 40, 30, 3)}, 1),
        ({"mask": torch.tensor([[[0.5, 1.0]]])}, 1),
        ({"negative_image": torch.zeros(1, 9, 40, 3)}, 1),
        ({}, 0),
    ],
)
def test_what_changes_the_features_is_encoded_again(studio: SimpleNamespace, change: dict, more: int) -> None:
    first = encode(studio)
    second = encode(studio, **change)
    assert len(studio.calls) == 2 + more
    assert (first.digest == second.digest) == (more == 0)


def test_a_picture_added_to_a_batch_is_the_only_one_encoded(studio: SimpleNamespace) -> None:
    pictures = torch.rand(3, 40, 30, 3)
    encode(studio, image=pictures[:2])
    assert len(studio.calls) == 3
    tokens = encode(studio, image=pictures)
    assert len(studio.calls) == 4
    assert tokens.cond.shape[0] == 3


def test_a_batch_equals_its_pictures_combined(studio: SimpleNamespace) -> None:
    pictures = torch.rand(2, 40, 30, 3)
    batch = encode(studio, image=pictures)
    parts = {f"tokens{i}": encode(studio, image=pictures[i : i + 1]) for i in range(2)}
    combined = comfy_host.run("IPACombineTokens", tokens=parts, method="concat", weights="")
    assert torch.equal(batch.cond, combined.cond)
    assert torch.equal(torch.stack(batch.sequences()), torch.stack(combined.sequences()))


def test_replaced_encoder_weights_are_another_encoder(studio: SimpleNamespace) -> None:
    first = encode(studio)
    encoders.write_folder("clip", studio.folder, seed=5)
    again = comfy_host.run("IPALoadAdapter", adapter_file="studio.safetensors", image_encoder="auto")
    assert encode(studio, adapter=again).digest != first.digest


def test_a_changed_file_changes_the_loaders_fingerprint(studio: SimpleNamespace) -> None:
    loader = comfy_host.node("IPALoadAdapter")
    choice = {"adapter_file": "studio.safetensors", "image_encoder": "auto"}
    before = loader.fingerprint_inputs(**choice)
    assert loader.fingerprint_inputs(**choice) == before
    encoders.write_folder("clip", studio.folder, seed=6)
    assert loader.fingerprint_inputs(**choice) != before


def test_the_cache_stays_below_its_bound_and_drops_the_oldest() -> None:
    cache = comfy_host.pack("nodes.cache").ByteCache(100)
    for index in range(5):
        cache.put(index, str(index), 40)
    assert cache.num_bytes <= 100
    assert cache.get(0, str) is None
    assert cache.get(4, str) == "4"
    assert cache.get(3, str) == "3"
    cache.put(5, "5", 40)
    assert cache.get(4, str) is None, "3 was used after 4"
    cache.put(6, "6", 1000)
    assert cache.num_bytes <= 100
    assert cache.get(6, str) is None
    assert cache.get(5, str) == "5", "what is too large drove out the rest"


def test_picture_is_cut_as_the_adapter_was_trained(studio: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    adapter = comfy_host.run("IPALoadAdapter", adapter_file="padded.safetensors", image_encoder="auto")
    with caplog.at_level(logging.WARNING):
        encode(studio, adapter=adapter, crop="pad")
        assert not caplog.records
        before = len(studio.calls)
        apply_image(studio, adapter=adapter)
        assert len(studio.calls) == before, "IPAApplyImage cut the picture in another way"
        encode(studio, adapter=adapter, crop="center")
    assert len(studio.calls) == before + 1
    assert "padded.safetensors was trained with crop 'pad', and gets 'center' here." in caplog.text
