"""PE-Core by timm; without it a message that says how to install it."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from support import comfy_host, encoders, tiny_pe
from support.tiny_pe import SIZE, WIDTH, meta_names


def load(adapter: str, encoder: str, resolution: int = 0) -> Any:
    settings = {"adapter_file": adapter, "image_encoder": encoder, "encoder_resolution": resolution}
    return comfy_host.run("IPALoadAdapter", **settings)


def last_hidden_state(spec: Any) -> Any:
    return replace(spec, feature=comfy_host.pack("ipadapter_core.file.spec").Feature.LAST_HIDDEN_STATE)


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch, base_directory: Path) -> Any:
    """A tiny PE-Core, which a size of the table leads to."""
    monkeypatch.setitem(comfy_host.pack("ipadapter_core.encoder.pe").TIMM_NAMES, tiny_pe.KEY, tiny_pe.NAME)
    return tiny_pe.tiny_pe()


def test_without_timm_the_message_says_what_to_install(
    clip_vision: Path, adapter_for: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not installed
    shapes = {
        "pos_embed": (1, 577, 1024),
        "patch_embed.proj.weight": (1024, 3, 14, 14),
        "cls_token": (1, 1, 1024),
        "attn_pool.latent": (1, 1, 1024),
        "norm_pre.weight": (1024,),
        **{f"blocks.{layer}.norm1.weight": (1024,) for layer in range(24)},
    }
    encoders.write_sparse(clip_vision / "pe.safetensors", shapes)
    spec = load(adapter_for("plus", 1024), "none").spec
    for choice in ("auto", "pe.safetensors"):
        with pytest.raises(ValueError, match=r"timm, which builds it, is not installed.* 'pip install timm'"):
            comfy_host.pack("nodes.loading")._load_encoder(last_hidden_state(spec), choice)


@pytest.mark.parametrize("names", ["timm", "meta"])
def test_the_last_hidden_state_of_a_file_equals_timm(
    clip_vision: Path, adapter_for: Callable[..., str], reference: Any, names: str
) -> None:
    tensors = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    save_file(meta_names(tensors) if names == "meta" else tensors, clip_vision / "pe.safetensors")
    spec = last_hidden_state(load(adapter_for("plus", WIDTH), "none").spec)
    encoder = comfy_host.pack("nodes.loading")._load_encoder(spec, "auto")
    assert (encoder.spec.kind, encoder.spec.image_size) == ("PE-Core", SIZE)
    assert encoder.pixel_format.mean == encoder.pixel_format.std == (0.5, 0.5, 0.5)
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        actual = encoder.encode(pixels, spec)
        torch.testing.assert_close(actual, reference.forward_features(pixels), rtol=1e-5, atol=1e-5)
    assert actual.shape == (2, 5, WIDTH)
    with pytest.raises(ValueError, match="to 28, or choose another encoder"):
        encoder.at(2 * SIZE)


@pytest.mark.parametrize("fault", ["missing", "unknown size"])
def test_a_file_that_is_not_whole_is_a_message(
    clip_vision: Path, adapter_for: Callable[..., str], reference: Any, fault: str
) -> None:
    left_out = "blocks.1." if fault == "unknown size" else "blocks.1.norm2.bias"
    tensors = {name: x.clone() for name, x in reference.state_dict().items() if not name.startswith(left_out)}
    save_file(tensors, clip_vision / "pe.safetensors")
    spec = last_hidden_state(load(adapter_for("plus", WIDTH), "none").spec)
    with pytest.raises(ValueError, match=r"timm cannot load.*What to do: download it again"):
        comfy_host.pack("nodes.loading")._load_encoder(spec, "pe.safetensors")
