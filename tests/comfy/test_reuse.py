"""Nothing is encoded twice: what changes a picture's features, and what does not."""

import gc
import json
import logging
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from legacy.running import clip_vision
from support import comfy_host, encoders, face_files, tiny_unet
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
    given = SimpleNamespace(
        adapter=adapter, calls=calls, projections=projections, picture=picture, model=model("sd15"), folder=folder
    )
    del adapter  # tests may let it go
    yield given
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
        assert "was trained with crop" not in caplog.text  # ComfyUI may say something of other tests' models
        before = len(studio.calls)
        apply_image(studio, adapter=adapter)
        assert len(studio.calls) == before, "IPAApplyImage cut the picture in another way"
        encode(studio, adapter=adapter, crop="center")
    assert len(studio.calls) == before + 1
    assert "padded.safetensors was trained with crop 'pad', and gets 'center' here." in caplog.text


def load_anew(studio: SimpleNamespace) -> Any:
    """The adapter with another encoder object, after the first one has gone."""
    gone = weakref.ref(studio.adapter.encoder)
    studio.adapter = None
    gc.collect()
    assert gone() is None
    adapter = comfy_host.run("IPALoadAdapter", adapter_file="studio.safetensors", image_encoder="auto")
    adapter.encoder.patcher.model["vision"].register_forward_hook(lambda *_: studio.calls.append(1))
    return adapter


def test_an_encoder_loaded_again_from_the_same_file_finds_its_features(studio: SimpleNamespace) -> None:
    first = encode(studio)
    before = len(studio.calls)
    again = encode(studio, adapter=load_anew(studio))
    assert len(studio.calls) == before
    assert torch.equal(again.cond, first.cond)


def test_an_encoder_whose_file_was_replaced_does_not(studio: SimpleNamespace) -> None:
    encode(studio)
    before = len(studio.calls)
    encoders.write_folder("clip", studio.folder, seed=7)
    encode(studio, adapter=load_anew(studio))
    assert len(studio.calls) == before + 2


def identity(vision: Any) -> str:
    name: str = comfy_host.pack("nodes.encoding.encoder").from_clip_vision(vision).identity
    return name


def test_a_connected_encoder_is_known_by_its_weights(base_directory: Path) -> None:
    """ComfyUI's loader does not tell which file it read."""
    assert identity(clip_vision()) == identity(clip_vision())
    assert identity(clip_vision(seed=1)) != identity(clip_vision())
    for number, tensor in enumerate(dict(clip_vision().model.state_dict()).values()):
        changed = clip_vision()
        if tensor.is_floating_point():
            list(changed.model.state_dict().values())[number].add_(1e-3)
            assert identity(changed) != identity(clip_vision())


def test_weight_patches_make_it_another_encoder(base_directory: Path) -> None:
    vision = clip_vision()
    plain = identity(vision)
    name = "visual_projection.weight"
    vision.patcher = vision.patcher.clone()
    vision.patcher.add_patches({name: (torch.ones_like(vision.model.state_dict()[name]),)})
    assert identity(vision) != plain


def test_a_large_tensor_is_told_by_samples(base_directory: Path) -> None:
    """Any change in training or merging reaches every number; here a part of one tensor has changed."""
    large = torch.zeros(1024, 1024)
    visions = [clip_vision(), clip_vision(), clip_vision()]
    for vision in visions:
        vision.model.register_buffer("large", large.clone())
    visions[1].model.large[:, 512:] = 1
    first, changed, same = map(identity, visions)
    assert first == same
    assert first != changed


@pytest.fixture
def pack(base_directory: Path) -> Iterator[Path]:
    folder = face_files.write_pack(base_directory / "models" / "insightface" / "models" / "again")
    yield folder
    shutil.rmtree(folder)


def test_a_face_model_loaded_again_finds_its_faces(pack: Path) -> None:
    first, again = (comfy_host.run("IPALoadFaceModel", face_pack="again", device="CPU") for _ in range(2))
    assert first.analysis is not again.analysis
    assert first.identity == again.identity
    for file in pack.glob("*.onnx"):
        file.write_bytes(file.read_bytes())
    assert comfy_host.run("IPALoadFaceModel", face_pack="again", device="CPU").identity != first.identity


def test_the_cache_is_emptied_when_comfyui_unloads_all_models(studio: SimpleNamespace) -> None:
    """What its buttons, /free and a run out of memory call."""
    import comfy.model_management

    cache = comfy_host.pack("nodes.cache").CACHE
    apply_image(studio)
    assert cache.num_bytes > 0
    comfy.model_management.load_models_gpu([studio.model])
    assert cache.num_bytes > 0, "another model needs room"
    comfy.model_management.unload_all_models()
    assert cache.num_bytes == 0
    assert not [model for model in comfy.model_management.loaded_models() if model is not None]  # None: another test's
    before = len(studio.calls)
    apply_image(studio)
    assert len(studio.calls) == before + 2
