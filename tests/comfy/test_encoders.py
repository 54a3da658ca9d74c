"""Image encoders: found by header, loaded by ComfyUI or by transformers, equal to transformers' own output."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host, encoders


def load(adapter: str, encoder: str = "auto") -> Any:
    return comfy_host.run("IPALoadAdapter", adapter_file=adapter, image_encoder=encoder)


def pixels(size: int) -> torch.Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", [kind for kind in encoders.FOLDERS if kind != "siglip2"])
def test_hidden_states_of_a_folder_equal_transformers(clip_vision: Path, adapter_for: Callable, kind: str) -> None:
    reference = encoders.write_folder(kind, clip_vision / kind)
    vision = getattr(reference, "vision_model", reference)
    adapter = load(adapter_for("plus", encoders.WIDTH))
    size = adapter.encoder.pixel_format.size
    with torch.inference_mode():
        expected = vision(pixel_values=pixels(size), output_hidden_states=True).hidden_states[-2]
        actual = adapter.encoder.encode(pixels(size), adapter.spec)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_half_precision_folder_is_computed_in_float32_where_16_bits_are_slow(
    clip_vision: Path, adapter_for: Callable
) -> None:
    reference = encoders.write_folder("clip", clip_vision / "clip").half()
    reference.save_pretrained(clip_vision / "clip")
    adapter = load(adapter_for("plus", encoders.WIDTH))
    size = adapter.encoder.pixel_format.size
    with torch.inference_mode():
        expected = reference.float()(pixel_values=pixels(size), output_hidden_states=True).hidden_states[-2]
        actual = adapter.encoder.encode(pixels(size), adapter.spec)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
@pytest.mark.parametrize("disabled", [True, False])
def test_disable_mmap_holds_for_folders(
    clip_vision: Path, adapter_for: Callable, monkeypatch: pytest.MonkeyPatch, disabled: bool
) -> None:
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "DISABLE_MMAP", disabled)
    folder = clip_vision / f"mapped {disabled}"
    reference = encoders.write_folder("clip", folder)
    adapter = load(adapter_for("plus", encoders.WIDTH))
    assert (str(folder) in Path("/proc/self/maps").read_text()) != disabled
    with torch.inference_mode():
        expected = reference(pixel_values=pixels(28), output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(adapter.encoder.encode(pixels(28), adapter.spec), expected)


def test_naflex_folder_equals_its_own_processor(clip_vision: Path, adapter_for: Callable) -> None:
    from transformers.models.siglip2.image_processing_siglip2 import Siglip2ImageProcessor

    reference = encoders.write_folder("siglip2", clip_vision / "siglip2")
    adapter = load(adapter_for("plus", encoders.WIDTH))
    size = adapter.encoder.pixel_format.size
    picture = torch.randint(0, 255, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    inputs = Siglip2ImageProcessor(patch_size=encoders.PATCH, max_num_patches=4)(images=picture, return_tensors="pt")
    normalised = ((picture.float() / 255 - 0.5) / 0.5)[None]
    with torch.inference_mode():
        expected = reference(**inputs, output_hidden_states=True).hidden_states[-2]
        actual = adapter.encoder.encode(normalised, adapter.spec)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "whole_clip", "siglip", "whole_siglip", "dinov2", "dinov3"])
def test_pooled_embeddings_of_a_folder_equal_transformers(clip_vision: Path, adapter_for: Callable, kind: str) -> None:
    reference = encoders.write_folder(kind, clip_vision / kind)
    adapter = load(adapter_for("base", encoders.EMBED_DIM if "clip" in kind else encoders.WIDTH))
    size = adapter.encoder.pixel_format.size
    with torch.inference_mode():
        if kind == "clip":
            expected = reference(pixel_values=pixels(size)).image_embeds
        elif kind == "whole_clip":
            expected = reference.visual_projection(reference.vision_model(pixel_values=pixels(size)).pooler_output)
        else:
            expected = getattr(reference, "vision_model", reference)(pixel_values=pixels(size)).pooler_output
        actual = adapter.encoder.encode(pixels(size), adapter.spec)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_single_file_loads_through_comfyui_and_equals_transformers(clip_vision: Path, adapter_for: Callable) -> None:
    reference = encoders.write_comfy_clip_l(clip_vision / "any name.safetensors")
    plus, base = load(adapter_for("plus", 1024)), load(adapter_for("base", 768))
    assert plus.encoder is base.encoder, "two adapters share one encoder"
    with torch.inference_mode():
        expected = reference.half().float()(pixel_values=pixels(224), output_hidden_states=True)
        hidden, pooled = (loaded.encoder.encode(pixels(224), loaded.spec) for loaded in (plus, base))
    torch.testing.assert_close(hidden, expected.hidden_states[-2], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(pooled, expected.image_embeds, rtol=1e-3, atol=1e-3)


SIZES = {"h": (1280, 32, 1024), "g": (1664, 48, 1280), "l": (1024, 24, 768)}


@pytest.mark.parametrize(
    ("kind", "image_dim", "chosen"),
    [("base", 1024, "h"), ("base", 1280, "g"), ("plus", 1280, "h"), ("plus", 1664, "g"), ("base", 768, "l")],
)
def test_auto_finds_the_published_encoder_by_header(
    clip_vision: Path, adapter_for: Callable, kind: str, image_dim: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (width, layers, embed_dim) in SIZES.items():
        encoders.write_single_file(clip_vision / f"model-{name}.safetensors", width, layers, embed_dim)
    (clip_vision / "broken.safetensors").write_bytes(b"not safetensors at all")
    loaded: list[str] = []

    def stop(path: Path) -> Any:
        loaded.append(path.name)
        raise KeyboardInterrupt  # the file has the right header and no weights

    monkeypatch.setattr(comfy_host.pack("nodes.loading"), "load_encoder_file", stop)
    with pytest.raises(KeyboardInterrupt):
        load(adapter_for(kind, image_dim))
    assert loaded == [f"model-{chosen}.safetensors"]


def test_auto_reads_a_header_once_per_file(clip_vision: Path, adapter_for: Callable) -> None:
    encoders.write_folder("clip", clip_vision / "clip")
    encoders.write_single_file(clip_vision / "h.safetensors", *SIZES["h"])
    file_spec = comfy_host.pack("nodes.loading")._file_spec
    name = adapter_for("plus", encoders.WIDTH)
    load(name)
    before = file_spec.cache_info().misses
    load(name)
    assert file_spec.cache_info().misses == before
    encoders.write_single_file(clip_vision / "h.safetensors", *SIZES["g"])
    load(name)
    assert file_spec.cache_info().misses == before + 1


def test_nothing_fits_names_need_found_and_place(clip_vision: Path, adapter_for: Callable) -> None:
    encoders.write_folder("dinov2", clip_vision / "dino")
    with pytest.raises(ValueError, match="Found") as error:
        load(adapter_for("plus", 1280))
    message = str(error.value)
    assert "CLIP ViT-H/14 (CLIP-ViT-H-14-laion2B-s32B-b79K), width 1280, 32 layers" in message
    assert "dino/ is DINOv2 of width 24, 3 layers" in message
    assert str(clip_vision) in message


def test_no_encoder_at_all(clip_vision: Path, adapter_for: Callable) -> None:
    with pytest.raises(ValueError, match="no image encoder at all"):
        load(adapter_for("base", 1024))


def test_metadata_tells_two_fitting_encoders_apart(clip_vision: Path, adapter_for: Callable) -> None:
    for seed, name in enumerate(("one", "two")):
        encoders.write_folder("clip", clip_vision / name, seed=seed)
    assert load(adapter_for("plus", encoders.WIDTH)).encoder.name == "one/"
    named = adapter_for("plus", encoders.WIDTH, encoder={"name": "two"})
    assert load(named).encoder.name == "two/"


def test_a_chosen_encoder_of_the_wrong_width_is_refused(clip_vision: Path, adapter_for: Callable) -> None:
    encoders.write_folder("clip", clip_vision / "clip")
    encoders.write_single_file(clip_vision / "g.safetensors", *SIZES["g"])
    for choice, found in (("clip/", "24-wide hidden states"), ("g.safetensors", "CLIP ViT-bigG/14")):
        with pytest.raises(ValueError, match="Found") as error:
            load(adapter_for("plus", 1280), choice)
        assert found in str(error.value)
        assert "CLIP ViT-H/14" in str(error.value)


def test_a_folder_whose_weights_do_not_fit_its_config(clip_vision: Path, adapter_for: Callable) -> None:
    encoders.write_folder("clip", clip_vision / "clip")
    config = json.loads((clip_vision / "clip" / "config.json").read_text())
    (clip_vision / "clip" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    with pytest.raises(ValueError, match="transformers cannot load"):
        load(adapter_for("plus", encoders.WIDTH))


def test_layer_choice_is_honoured(clip_vision: Path, adapter_for: Callable) -> None:
    reference = encoders.write_folder("clip", clip_vision / "clip")
    adapter = load(adapter_for("plus", encoders.WIDTH, layer=-3))
    size = adapter.encoder.pixel_format.size
    with torch.inference_mode():
        expected = reference(pixel_values=pixels(size), output_hidden_states=True).hidden_states[-3]
        torch.testing.assert_close(adapter.encoder.encode(pixels(size), adapter.spec), expected)


def test_noise_for_no_image_is_the_picture_that_the_formats_describe(clip_vision: Path, adapter_for: Callable) -> None:
    """As `negative_image` it does the same."""
    encoders.write_folder("clip", clip_vision / "clip")
    stated, plain = (
        load(adapter_for("plus", encoders.WIDTH, **spec)) for spec in ({"negative": "noise"}, {"layer": -2})
    )
    size = stated.encoder.pixel_format.size
    noise = 0.5 * torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    asked = {"image": torch.rand(1, size, size, 3), "crop": "center"}
    given = comfy_host.run("IPAEncodeImage", adapter=stated, **asked)
    wanted = comfy_host.run("IPAEncodeImage", adapter=plain, negative_image=noise.movedim(1, -1), **asked)
    usual = comfy_host.run("IPAEncodeImage", adapter=plain, **asked)
    torch.testing.assert_close(given.uncond, wanted.uncond)
    torch.testing.assert_close(given.cond, usual.cond)
    assert not torch.allclose(given.uncond, usual.uncond)
