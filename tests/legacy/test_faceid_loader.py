"""`IPAdapterUnifiedLoaderFaceID`: files by their tensors, LoRA from either file, one face model for several loaders."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from legacy.apply_fixtures import assert_draws
from legacy.face_fixtures import NOBODY, ONE, WIDGETS, first_face, identity_tokens, steered, usual_face_model, write
from legacy.running import outputs
from support import comfy_host, tiny_unet
from support.published import nested, write_bin, write_safetensors


@pytest.fixture(scope="module")
def face_model(base_directory: Path) -> Any:
    return usual_face_model(base_directory)


class Loader:
    """IPAdapterUnifiedLoaderFaceID on files of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, model: Any, preset: str, strength: float = 0.6, **more: Any) -> tuple[Any, Any]:
        widgets = {"preset": preset, "lora_strength": strength, "provider": "CPU"}
        return outputs("IPAdapterUnifiedLoaderFaceID", model=model, **widgets, **more)


@pytest.fixture
def loader(base_directory: Path, face_model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Loader:
    """In folders where nothing else lies."""
    import folder_paths

    for kind in ("ipadapter", "loras"):
        (tmp_path / "models" / kind).mkdir(parents=True)
        extensions = folder_paths.folder_names_and_paths[kind][1]
        place = ([str(tmp_path / "models" / kind)], extensions)
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, place)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return Loader(tmp_path)


def test_presets_are_told_apart_by_tensors(loader: Loader, model: Callable) -> None:
    """No file is named as published."""
    write(loader.folder, "sd15", "faceid", "a.safetensors", num_tokens=4)
    write(loader.folder, "sd15", "portrait", "b.safetensors", num_tokens=16)
    for preset, file in (("FACEID", "a.safetensors"), ("FACEID PORTRAIT (style transfer)", "b.safetensors")):
        _, pipeline = loader.run(model("sd15"), preset)
        assert pipeline["ipadapter"]["file"] == file
        assert pipeline["insightface"]["provider"] == "CPU"
        assert pipeline["insightface"]["model"].get((ONE[0].numpy() * 255).astype(np.uint8)[..., ::-1])


def lora_change(given: Any) -> float:
    """How far the weights of a MODEL were patched from its own."""
    return float(sum(len(patches) for patches in given.patches.values()))


def test_lora_comes_from_the_file_itself_where_there_is_no_other(loader: Loader, model: Callable) -> None:
    write(loader.folder, "sd15", "faceid", "ip-adapter-faceid_sd15.safetensors")
    with_lora, pipeline = loader.run(model("sd15"), "FACEID", 0.5)
    wanted = outputs(
        "IPAApplyFaceLora",
        model=model("sd15"),
        adapter=pipeline["ipadapter"]["model"].loaded,
        strength=0.5,
    )[0]
    assert lora_change(with_lora) == lora_change(wanted) == 4 * 32
    assert_same_weights(with_lora, wanted)
    assert loader.run(model("sd15"), "FACEID", 0.0)[0] is model("sd15")


def assert_same_weights(given: Any, wanted: Any) -> None:
    assert given.patches.keys() == wanted.patches.keys()
    for key in given.patches:
        (one,), (other,) = given.patches[key], wanted.patches[key]
        assert one[0] == other[0]  # strength
        assert all(torch.equal(a, b) for a, b in zip(one[1].weights[:2], other[1].weights[:2], strict=True))


def test_lora_of_its_own_file_goes_first(loader: Loader, model: Callable) -> None:
    write(loader.folder, "sd15", "faceid", "ip-adapter-faceid_sd15.safetensors")
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    up, down = torch.ones(32, 2), torch.ones(2, tiny_unet.CONTEXT_DIM)
    file = {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}
    write_safetensors(loader.folder / "models" / "loras" / "ip-adapter-faceid_sd15_lora.safetensors", file)
    with_lora, _ = loader.run(model("sd15"), "FACEID", 0.7)
    ((strength, patch, *_),) = next(iter(with_lora.patches.values()))
    assert list(with_lora.patches) == ["diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"]
    assert strength == 0.7
    assert torch.equal(patch.weights[0], up)


def test_a_lora_that_cannot_be_read_is_left_out(
    loader: Loader, model: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    write(loader.folder, "sd15", "faceid", "ip-adapter-faceid_sd15.safetensors")
    loras = loader.folder / "models" / "loras"
    (loras / "a-faceid_sd15_lora.safetensors").symlink_to("nowhere")
    (loras / "b-faceid_sd15_lora.safetensors").write_bytes(b"<html>")
    fingerprint = partial(comfy_host.fingerprint, "IPAdapterUnifiedLoaderFaceID")
    before = fingerprint(preset="FACEID")
    with caplog.at_level(logging.WARNING):
        with_lora, _ = loader.run(model("sd15"), "FACEID")
    assert lora_change(with_lora) == 4 * 32, "the adapter's own"
    assert "a-faceid_sd15_lora.safetensors is left out. Found: " in caplog.text
    assert "b-faceid_sd15_lora.safetensors is no usable LoRA file" in caplog.text
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    file = {f"{layer}.lora_up.weight": torch.ones(32, 2), f"{layer}.lora_down.weight": torch.ones(2, 16)}
    write_safetensors(loras / "b-faceid_sd15_lora.safetensors", file)
    assert fingerprint(preset="FACEID") != before


def test_a_faceid_without_any_lora_says_what_is_missing(loader: Loader, model: Callable) -> None:
    write(loader.folder, "sd15", "faceid", "ip-adapter-faceid_sd15.safetensors", lora_rank=0)
    with pytest.raises(ValueError, match=r"ip-adapter-faceid_sd15_lora\.safetensors"):
        loader.run(model("sd15"), "FACEID")


def test_a_bin_as_published_works(loader: Loader, model: Callable, face_model: Any) -> None:
    tensors = write(loader.folder, "sdxl", "faceid", "ip-adapter-faceid_sdxl.safetensors")
    (loader.folder / "models" / "ipadapter" / "ip-adapter-faceid_sdxl.safetensors").unlink()
    write_bin(loader.folder / "models" / "ipadapter" / "ip-adapter-faceid_sdxl.bin", nested(tensors))
    plain_model, pipeline = loader.run(model("sdxl"), "FACEID", 0.0)
    given, _ = outputs("IPAdapterFaceID", model=plain_model, ipadapter=pipeline, image=ONE, **WIDGETS)
    identity, _, _ = first_face(face_model, ONE)
    wanted = steered(tensors, "sdxl", identity_tokens(tensors, identity), identity_tokens(tensors, NOBODY))
    assert_draws(given, model("sdxl"), "sdxl", [wanted])


def test_a_loader_before_this_one_lends_its_face_model(
    loader: Loader, model: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    write(loader.folder, "sd15", "portrait", "portrait.safetensors", num_tokens=16)
    preset = "FACEID PORTRAIT (style transfer)"
    _, first = loader.run(model("sd15"), preset)
    _, second = loader.run(model("sd15"), preset, ipadapter=first)
    assert second["insightface"]["model"] is first["insightface"]["model"]
    with caplog.at_level(logging.WARNING):
        widgets = {"preset": preset, "lora_strength": 0.6, "provider": "CUDA"}
        third = outputs("IPAdapterUnifiedLoaderFaceID", model=model("sd15"), ipadapter=first, **widgets)[1]
    assert third["insightface"]["model"] is not first["insightface"]["model"]


@pytest.mark.parametrize("preset", ["FACEID PORTRAIT UNNORM - SDXL only (strong)"])
def test_a_preset_for_another_base_is_refused(loader: Loader, model: Callable, preset: str) -> None:
    with pytest.raises(ValueError, match="SDXL"):
        loader.run(model("sd15"), preset)
