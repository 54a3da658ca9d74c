"""PE-Core by timm, where it is installed; else a message that says how to install it."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from support import comfy_host, encoders

HAS_TIMM = importlib.util.find_spec("timm") is not None
WIDTH, LAYERS, SIZE = 64, 2, 28
NAME = "vit_pe_core_of_tests"


def load(adapter: str, encoder: str, resolution: int = 0) -> Any:
    settings = {"adapter_file": adapter, "image_encoder": encoder, "encoder_resolution": resolution}
    return comfy_host.run("IPALoadAdapter", **settings)


def last_hidden_state(spec: Any) -> Any:
    return replace(spec, feature=comfy_host.pack("ipadapter_core.file.spec").Feature.LAST_HIDDEN_STATE)


def meta_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vision part of Meta's file, as a whole CLIP has it."""
    swaps = (
        *(("patch_embed.proj", "conv1"), ("norm_pre", "ln_pre"), ("blocks.", "transformer.resblocks.")),
        *((".norm1", ".ln_1"), (".norm2", ".ln_2"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")),
        *(("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj")),
    )
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.startswith(("attn_pool", "head", "norm.", "cls", "pos")):
            for theirs, ours in swaps:
                name = name.replace(theirs, ours)
            named[name] = tensor
    pool = {
        name.removeprefix("attn_pool."): tensor for name, tensor in tensors.items() if name.startswith("attn_pool.")
    }
    for part in ("weight", "bias"):
        named[f"attn_pool.attn.in_proj_{part}"] = torch.cat((pool[f"q.{part}"], pool[f"kv.{part}"]))
        named[f"attn_pool.attn.out_proj.{part}"] = pool[f"proj.{part}"]
        named[f"attn_pool.layernorm.{part}"] = pool[f"norm.{part}"]
        named[f"attn_pool.mlp.c_fc.{part}"] = pool[f"mlp.fc1.{part}"]
        named[f"attn_pool.mlp.c_proj.{part}"] = pool[f"mlp.fc2.{part}"]
        named[f"ln_post.{part}"] = tensors[f"norm.{part}"]
    named |= {
        "attn_pool.probe": pool["latent"],
        "class_embedding": tensors["cls_token"].flatten(),
        "positional_embedding": tensors["pos_embed"][0],
        "proj": tensors["head.weight"].T,
    }
    text = {"positional_embedding": torch.zeros(7, 9), "transformer.resblocks.0.ln_1.weight": torch.zeros(9)}
    return {f"visual.{name}": tensor.contiguous() for name, tensor in named.items()} | text


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch, base_directory: Path) -> Any:
    """A tiny PE-Core of timm's own class, which a size of the table leads to."""
    timm = pytest.importorskip("timm")

    def vit_pe_core_of_tests(pretrained: bool = False, **settings: Any) -> Any:
        settings |= {"embed_dim": WIDTH, "depth": LAYERS, "num_heads": 2, "attn_pool_num_heads": 2, "num_classes": 16}
        return timm.create_model(
            "vit_pe_core_large_patch14_336", pretrained=False, img_size=SIZE, ref_feat_shape=(2, 2), **settings
        )

    if not timm.is_model(NAME):
        timm.models.register_model(vit_pe_core_of_tests)
    monkeypatch.setitem(comfy_host.pack("ipadapter_core.encoder.pe").TIMM_NAMES, (WIDTH, LAYERS), NAME)
    torch.manual_seed(0)
    model = timm.create_model(NAME).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.skipif(HAS_TIMM, reason="timm is here")
def test_without_timm_the_message_says_what_to_install(clip_vision: Path, adapter_for: Callable[..., str]) -> None:
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
