"""Encoders at another resolution than their own: equal to transformers, and nothing stays on the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, encoders

LARGER = 5 * encoders.PATCH  # the encoders' own is 2 patches


def load(adapter: str, encoder: str = "auto", resolution: int = 0) -> Any:
    settings = {"adapter_file": adapter, "image_encoder": encoder, "encoder_resolution": resolution}
    return comfy_host.run("IPALoadAdapter", **settings)


def pixels(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def encode(adapter: Any, **inputs: Any) -> Any:
    picture = torch.rand(1, 80, 80, 3, generator=torch.Generator().manual_seed(3))
    return comfy_host.run("IPAEncodeImage", adapter=adapter, image=picture, crop="center", **inputs)


def at_larger(reference: Any) -> Any:
    """What transformers makes of larger pictures."""
    vision = getattr(reference, "vision_model", reference)
    told = (
        {} if "Dino" in type(vision).__name__ or "DINO" in type(vision).__name__ else {"interpolate_pos_encoding": True}
    )
    return vision(pixel_values=pixels(LARGER), output_hidden_states=True, **told)


@pytest.mark.parametrize("kind", [kind for kind in encoders.FOLDERS if kind != "siglip2"])
def test_a_folder_at_another_resolution_equals_transformers(
    clip_vision: Path, adapter_for: Callable[..., str], kind: str
) -> None:
    reference = encoders.write_folder(kind, clip_vision / kind)
    adapter = load(adapter_for("plus", encoders.WIDTH), resolution=LARGER)
    assert adapter.encoder.pixel_format.size == LARGER
    with torch.inference_mode():
        expected = at_larger(reference).hidden_states[-2]
        actual = adapter.encoder.encode(pixels(LARGER), adapter.spec)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", encoders.COMFY_KINDS)
def test_comfyui_s_own_models_equal_transformers_and_stay_as_they_are(
    tmp_path: Path, adapter_for: Callable[..., str], kind: str
) -> None:
    comfy, reference = encoders.comfy_pair(kind, tmp_path / "file.safetensors")
    adapter = load(adapter_for("plus", encoders.WIDTH), "none")
    own = comfy_host.pack("nodes.encoding.encoder").from_clip_vision(comfy)
    before = {name: value.clone() for name, value in comfy.model.state_dict().items()}
    parameters = dict(comfy.model.named_parameters())
    with torch.inference_mode():
        usual = own.encode(pixels(28), adapter.spec)
        actual = own.at(LARGER).encode(pixels(LARGER), adapter.spec)
        torch.testing.assert_close(actual, at_larger(reference).hidden_states[-2], rtol=1e-5, atol=1e-5)
        assert torch.equal(own.encode(pixels(28), adapter.spec), usual)
        with pytest.raises(RuntimeError):  # an encoder that fails in the middle
            own.at(LARGER).encode(pixels(LARGER)[:, :1], adapter.spec)
    assert all(value is parameters[name] for name, value in comfy.model.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in comfy.model.state_dict().items())
    assert not comfy.patcher.patches


def test_naflex_reads_another_resolution(clip_vision: Path, adapter_for: Callable[..., str]) -> None:
    encoders.write_folder("siglip2", clip_vision / "siglip2")
    size = 3 * encoders.PATCH
    adapter = load(adapter_for("plus", encoders.WIDTH), resolution=size)
    assert adapter.encoder.encode(pixels(size), adapter.spec).shape == (2, 9, encoders.WIDTH)


def test_file_node_and_socket_say_the_same(
    clip_vision: Path, adapter_for: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders.write_folder("clip", clip_vision / "clip")
    usual = load(adapter_for("plus", encoders.WIDTH))
    chosen = load(adapter_for("plus", encoders.WIDTH), resolution=LARGER)
    stated = load(adapter_for("plus", encoders.WIDTH, encoder={"image_size": LARGER}))
    assert chosen.encoder.patcher is stated.encoder.patcher is usual.encoder.patcher, "one model serves all"
    shown = comfy_host.pack("nodes.loading").describe
    assert f"at {LARGER} pixels" in shown(chosen)
    assert shown(stated) == shown(chosen)
    assert "pixels" not in shown(usual)
    tokens = [encode(adapter) for adapter in (usual, chosen, stated)]
    assert not torch.allclose(tokens[0].cond, tokens[1].cond)
    assert torch.equal(tokens[1].cond, tokens[2].cond)
    assert torch.equal(encode(usual).cond, tokens[0].cond), "the cache tells them apart"
    overruled = load(
        adapter_for("plus", encoders.WIDTH, encoder={"image_size": LARGER}), resolution=encoders.IMAGE_SIZE
    )
    assert torch.equal(encode(overruled).cond, tokens[0].cond)


def test_a_connected_clip_vision_is_read_at_the_resolution_of_the_adapter(
    tmp_path: Path, adapter_for: Callable[..., str]
) -> None:
    comfy, reference = encoders.comfy_pair("clip", tmp_path / "file.safetensors")
    adapter = load(adapter_for("plus", encoders.WIDTH), "none", LARGER)
    encoder = comfy_host.pack("nodes.encoding.pictures").encoder_of(adapter, comfy)
    with torch.inference_mode():
        actual = encoder.encode(pixels(LARGER), adapter.spec)
        torch.testing.assert_close(actual, at_larger(reference).hidden_states[-2], rtol=1e-5, atol=1e-5)
    usual = encode(load(adapter_for("plus", encoders.WIDTH), "none"), clip_vision=comfy)
    assert not torch.allclose(encode(adapter, clip_vision=comfy).cond, usual.cond)


def test_the_old_nodes_read_what_a_file_states(clip_vision: Path, adapter_for: Callable[..., str]) -> None:
    encoders.write_folder("clip", clip_vision / "clip")
    payload = comfy_host.pack("nodes.legacy.payload")
    adapter = load(adapter_for("plus", encoders.WIDTH, encoder={"image_size": LARGER}))
    other = load(adapter_for("plus", encoders.WIDTH))
    assert payload.read_payload(payload.make_pipeline(adapter)).encoder().pixel_format.size == LARGER
    carried = payload.read_payload(payload.RawAdapter(other), clip_vision=adapter.encoder)
    assert carried.encoder().pixel_format.size == encoders.IMAGE_SIZE


@pytest.mark.parametrize("size", [LARGER + 1, 1036])
def test_a_size_it_cannot_read_is_a_message(clip_vision: Path, adapter_for: Callable[..., str], size: int) -> None:
    encoders.write_folder("clip", clip_vision / "clip")
    for name, resolution in (
        (adapter_for("plus", encoders.WIDTH), size),
        (adapter_for("plus", encoders.WIDTH, encoder={"image_size": size}), 0),
    ):
        with pytest.raises(ValueError, match=f"resolution of {size} pixels .* multiple of its patch, 14 pixels"):
            load(name, resolution=resolution)
