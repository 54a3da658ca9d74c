"""What encoders give besides hidden states of a layer: SigLIP's pooled output, and the last hidden state of any."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, encoders


def reading(adapter: Any, feature: str) -> Any:
    return replace(adapter.spec, feature=comfy_host.pack("ipadapter_core.file.spec").Feature(feature))


def load(adapter: str, encoder: str = "auto") -> Any:
    return comfy_host.run("IPALoadAdapter", adapter_file=adapter, image_encoder=encoder)


def pixels(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def encoder_of(comfy: Any, file: Path | None = None) -> Any:
    module = comfy_host.pack("nodes.encoding.encoder")
    if file is not None:
        module._add_head(comfy, file)
    return module.from_clip_vision(comfy)


@pytest.fixture
def plus(adapter_for: Callable[..., str]) -> Any:
    return load(adapter_for("plus", encoders.WIDTH), "none")


@pytest.mark.parametrize("kind", [kind for kind in encoders.FOLDERS if kind != "siglip2"])
def test_the_last_hidden_state_of_a_folder_equals_transformers(
    clip_vision: Path, adapter_for: Callable[..., str], kind: str
) -> None:
    reference = encoders.write_folder(kind, clip_vision / kind)
    adapter = load(adapter_for("plus", encoders.WIDTH))
    size = adapter.encoder.pixel_format.size
    with torch.inference_mode():
        expected = getattr(reference, "vision_model", reference)(pixel_values=pixels(size)).last_hidden_state
        actual = adapter.encoder.encode(pixels(size), reading(adapter, "last_hidden_state"))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", encoders.COMFY_KINDS)
def test_the_last_hidden_state_of_comfyui_s_own_models_equals_transformers(
    tmp_path: Path, plus: Any, kind: str
) -> None:
    comfy, reference = encoders.comfy_pair(kind, tmp_path / "file.safetensors")
    with torch.inference_mode():
        expected = reference(pixel_values=pixels(28)).last_hidden_state
        actual = encoder_of(comfy).encode(pixels(28), reading(plus, "last_hidden_state"))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.smoke
def test_siglip_s_pooled_output_of_a_file_equals_transformers(tmp_path: Path, plus: Any) -> None:
    file = tmp_path / "siglip.safetensors"
    comfy, reference = encoders.comfy_pair("siglip", file)
    encoder = encoder_of(comfy, file)
    assert encoder.spec.embed_dim == encoders.WIDTH
    with torch.inference_mode():
        expected = reference(pixel_values=pixels(28), output_hidden_states=True)
        pooled = encoder.encode(pixels(28), reading(plus, "image_embeds"))
        hidden = encoder.encode(pixels(28), plus.spec)
    torch.testing.assert_close(pooled, expected.pooler_output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden, expected.hidden_states[-2], rtol=1e-5, atol=1e-5)


def test_the_pooling_head_is_managed_with_its_model(tmp_path: Path) -> None:
    """It moves and counts with it, also when only ComfyUI's object is handed on."""
    file = tmp_path / "siglip.safetensors"
    comfy, reference = encoders.comfy_pair("siglip", file)
    without = encoder_of(comfy)
    encoder = encoder_of(comfy, file)
    head = sum(value.numel() for name, value in reference.state_dict().items() if "head" in name)
    assert head > 0
    assert sum(value.numel() for value in encoder.patcher.model.state_dict().values()) == sum(
        value.numel() for value in reference.state_dict().values()
    )
    assert without.spec.embed_dim is None
    assert encoder_of(comfy).spec == encoder.spec


@pytest.mark.parametrize("size", [28, 70])
def test_a_partly_loaded_encoder_gives_the_same(tmp_path: Path, plus: Any, size: int) -> None:
    """As with --lowvram: layers stay where they are and are cast when used, the head's too."""
    file = tmp_path / "siglip.safetensors"
    comfy, reference = encoders.comfy_pair("siglip", file)
    encoder, spec = encoder_of(comfy, file), reading(plus, "image_embeds")
    encoder.patcher.load(torch.device("cpu"), lowvram_model_memory=1)
    assert comfy.model.model_lowvram
    with torch.inference_mode():
        expected = reference(pixel_values=pixels(size), interpolate_pos_encoding=True).pooler_output
        torch.testing.assert_close(encoder.run(pixels(size), spec), expected, rtol=1e-5, atol=1e-5)
        encoder.patcher.detach()
        torch.testing.assert_close(encoder.at(size).encode(pixels(size), spec), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", encoders.COMFY_KINDS)
def test_what_comfyui_made_of_a_file_is_described_as_the_file(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "file.safetensors"
    comfy, _ = encoders.comfy_pair(kind, file)
    spec = encoder_of(comfy, file if kind == "siglip" else None).spec
    by_file = comfy_host.pack("ipadapter_core.encoder.known").read_encoder_file(file)
    assert spec == by_file
    assert spec.patch_size == by_file.patch_size == encoders.PATCH


def test_a_siglip_without_its_head_says_what_is_missing(
    tmp_path: Path, clip_vision: Path, adapter_for: Callable[..., str]
) -> None:
    adapter = load(adapter_for("base", encoders.WIDTH), "none")
    comfy, _ = encoders.comfy_pair("siglip", tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match="without its pooling head") as error:
        comfy_host.run(
            "IPAEncodeImage", adapter=adapter, image=torch.rand(1, 8, 8, 3), crop="center", clip_vision=comfy
        )
    assert "disconnect it" in str(error.value)
    encoders.write_siglip_file(clip_vision / "headless.safetensors", with_head=False)
    for choice in ("auto", "headless.safetensors"):
        with pytest.raises(ValueError, match="SigLIP of width 128, 3 layers without its pooling head"):
            load(adapter_for("base", 128), choice)


@pytest.mark.parametrize("damage", ["missing", "wrong"])
def test_a_damaged_head_is_a_message(tmp_path: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    file = tmp_path / "siglip.safetensors"
    comfy, _ = encoders.comfy_pair("siglip", file)
    tensors = load_file(file)
    del tensors["vision_model.head.mlp.fc1.bias"]
    if damage == "wrong":
        tensors["vision_model.head.mlp.fc1.bias"] = torch.zeros(3)
    save_file(tensors, file)
    with pytest.raises(RuntimeError, match=r"fc1\.bias"):
        comfy_host.pack("nodes.encoding.encoder")._add_head(comfy, file)


@pytest.mark.parametrize("feature", ["image_embeds", "hidden_states", "last_hidden_state"])
def test_a_siglip_file_of_a_size_that_comfyui_does_not_know(
    clip_vision: Path, adapter_for: Callable[..., str], feature: str
) -> None:
    reference = encoders.write_siglip_file(clip_vision / "small.safetensors")
    adapter = load(adapter_for("base" if feature == "image_embeds" else "plus", 128))
    assert adapter.encoder.name == "small.safetensors"
    assert adapter.encoder.pixel_format.mean == adapter.encoder.pixel_format.std == (0.5, 0.5, 0.5)
    with torch.inference_mode():
        out = reference(pixel_values=pixels(28), output_hidden_states=True)
        expected = {
            "image_embeds": out.pooler_output,
            "hidden_states": out.hidden_states[-2],
            "last_hidden_state": out.last_hidden_state,
        }[feature]
        actual = adapter.encoder.encode(pixels(28), reading(adapter, feature))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("side", "patch", "known"), [(27, 14, True), (32, 16, True), (16, 14, False), (24, 16, False)])
def test_comfyui_loads_the_so400m_files_it_knows(base_directory: Path, side: int, patch: int, known: bool) -> None:
    """Of any other it says nothing that helps, or builds a wrong one."""
    shapes = {
        "vision_model.embeddings.position_embedding.weight": (side**2, 1152),
        "vision_model.embeddings.patch_embedding.weight": (1152, 3, patch, patch),
        **{f"vision_model.encoder.layers.{layer}.layer_norm1.weight": (1152,) for layer in range(27)},
    }
    spec = comfy_host.pack("ipadapter_core.encoder.known").encoder_from_shapes(shapes)
    assert comfy_host.pack("nodes.encoding.encoder").comfyui_loads(spec) == known
    empty = {name: torch.zeros(shape) for name, shape in shapes.items()}
    clip_vision = comfy_host.pack("nodes.loading")._file_loader(spec)
    assert (clip_vision is comfy_host.pack("nodes.loading").load_encoder_file) == known
    if not known:
        with pytest.raises(UnboundLocalError):
            importlib.import_module("comfy.clip_vision").load_clipvision_from_sd(empty)


def test_a_damaged_siglip_file_is_a_message(clip_vision: Path, adapter_for: Callable[..., str]) -> None:
    from safetensors.torch import load_file, save_file

    encoders.write_siglip_file(clip_vision / "small.safetensors")
    tensors = load_file(clip_vision / "small.safetensors")
    del tensors["vision_model.encoder.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, clip_vision / "small.safetensors")
    with pytest.raises(
        ValueError, match=r"Expected: a complete SigLIP vision model\. What to do: download the file again"
    ):
        load(adapter_for("plus", 128))


def test_references_are_padded_as_the_file_states(clip_vision: Path, adapter_for: Callable[..., str]) -> None:
    encoders.write_folder("clip", clip_vision / "clip")
    encode = comfy_host.pack("nodes.encoding.pictures").encode_image
    black, mean, plain = (
        load(adapter_for("plus", encoders.WIDTH, **spec))
        for spec in (
            {"encoder": {"crop": "pad", "padding": "black"}},
            {"encoder": {"crop": "pad"}},
            {"layer": -2},
        )
    )
    picture = torch.rand(1, 28, 14, 3, generator=torch.Generator().manual_seed(1))
    on_black = torch.zeros(1, 28, 28, 3)
    on_black[:, :, 7:21] = picture
    tokens = [encode(adapter, adapter.encoder, picture).cond for adapter in (black, mean)]
    wanted = encode(plain, plain.encoder, on_black, crop="center").cond
    torch.testing.assert_close(tokens[0], wanted)
    assert not torch.allclose(tokens[1], wanted), "the cache tells them apart"


def test_a_dinov3_file_says_that_comfyui_gives_no_layer_of_it(plus: Any) -> None:
    dino3 = pytest.importorskip("comfy.image_encoders.dino3")
    from comfy.clip_vision import ClipVisionModel

    small = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    encoder = encoder_of(ClipVisionModel(dino3.DINOV3_VITH_CONFIG | small))
    with pytest.raises(ValueError, match=r"gives the last hidden state alone\. Expected: hidden states \(layer -2\)"):
        encoder.encode(pixels(32), plus.spec)
    assert encoder.encode(pixels(32), reading(plus, "last_hidden_state")).shape == (2, 9, 32)


@pytest.mark.slow
@pytest.mark.long
def test_a_whole_so400m_file_with_its_head_equals_transformers(
    clip_vision: Path, adapter_for: Callable[..., str]
) -> None:
    reference = encoders.write_comfy_siglip(clip_vision / "any name.safetensors")
    pooled = load(adapter_for("base", 1152))
    hidden = load(adapter_for("plus", 1152))
    assert pooled.encoder is hidden.encoder
    assert pooled.encoder.clip_vision is not None
    picture = pixels(384)[:1]
    with torch.inference_mode():
        expected = reference(pixel_values=picture, output_hidden_states=True)
        actual = [adapter.encoder.encode(picture, adapter.spec) for adapter in (pooled, hidden)]
    torch.testing.assert_close(actual[0], expected.pooler_output, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(actual[1], expected.hidden_states[-2], rtol=1e-3, atol=1e-3)
