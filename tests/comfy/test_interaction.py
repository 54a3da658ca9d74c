"""Precisions, memory modes and attention overrides of ComfyUI."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, tiny_unet


@pytest.fixture
def setting(model: Callable, make_adapter: Callable, make_tokens: Callable) -> tuple[Any, Any, Any]:
    adapter = make_adapter("base", "sdxl")
    return model("sdxl"), adapter, make_tokens(adapter)


def image_effect(plain: Tensor, patched: Tensor) -> Tensor:
    return (patched.float() - plain.float()) / plain.float().norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_bases(
    setting: tuple, apply: Callable, sample: Callable, unet: Callable, dtype: torch.dtype
) -> None:
    _, adapter, tokens = setting
    half = tiny_unet.comfy_model("sdxl", unet("sdxl"), dtype)
    effect = image_effect(sample(half), sample(apply(half, adapter, tokens)))
    assert effect.isfinite().all()
    full = tiny_unet.comfy_model("sdxl", unet("sdxl"))
    expected = image_effect(sample(full), sample(apply(full, adapter, tokens)))
    assert (effect - expected).norm() < 0.1 * expected.norm()


def test_weights_in_fp8_with_another_compute_type(
    setting: tuple, apply: Callable, sample: Callable, unet: Callable
) -> None:
    _, adapter, tokens = setting
    base = tiny_unet.comfy_model("sdxl", unet("sdxl"), torch.float8_e4m3fn, compute=torch.float32)
    assert base.model_dtype() == torch.float8_e4m3fn
    patched = apply(base, adapter, tokens)
    assert image_effect(sample(base), sample(patched)).norm() > 0.01


def test_quantised_weights_whose_shape_says_nothing(
    setting: tuple, apply: Callable, sample: Callable, unet: Callable
) -> None:
    """As ComfyUI-GGUF keeps them: packed bytes in `weight`, real sizes only in in_features."""
    _, adapter, tokens = setting
    base = tiny_unet.comfy_model("sdxl", unet("sdxl"))
    expected = sample(apply(base, adapter, tokens))
    for module in base.model.diffusion_model.modules():
        if isinstance(module, torch.nn.Linear):
            real = module.weight.data
            module.weight = torch.nn.Parameter(real.contiguous().view(torch.uint8).flatten(), requires_grad=False)
            module.forward = lambda x, m=module, r=real: torch.nn.functional.linear(x, r, m.bias)
    assert torch.equal(sample(apply(base, adapter, tokens)), expected)


def test_model_options_and_order_of_loading(setting: tuple, apply: Callable, sample: Callable) -> None:
    """Unloading everything between two queues changes nothing."""
    import comfy.model_management

    model, adapter, tokens = setting
    patched = apply(model, adapter, tokens)
    before = sample(patched)
    comfy.model_management.unload_all_models()
    assert torch.equal(sample(patched), before)
    comfy.model_management.unload_all_models()
    assert torch.equal(sample(apply(model, adapter, tokens)), before)


def test_low_vram_adapter(setting: tuple, make_adapter: Callable, apply: Callable, sample: Callable) -> None:
    """An adapter whose weights are only partly on the device gives the same keys and values."""
    model, adapter, tokens = setting
    expected = sample(apply(model, adapter, tokens))
    comfy_host.pack("nodes.cache").CACHE.clear()
    patcher = adapter.loaded.patcher
    patcher.partially_load(patcher.load_device, extra_memory=patcher.model_size() // 2)
    try:
        assert torch.equal(sample(apply(model, adapter, tokens)), expected)
    finally:
        patcher.detach()


def test_attention_overrides_see_both_branches(
    model: Callable, make_adapter: Callable, make_tokens: Callable, apply: Callable, sample: Callable
) -> None:
    adapter = make_adapter("base", "sdxl", num_tokens=6)  # a number that no feature map has as tokens
    patched = apply(model("sdxl"), adapter, make_tokens(adapter))
    seen: list[tuple[int, Any]] = []

    def override(function: Callable, *args: Any, **kwargs: Any) -> Tensor:
        seen.append((args[1].shape[-2], kwargs.get("low_precision_attention", True)))
        return function(*args, **kwargs)

    expected = sample(patched, steps=1)
    patched = patched.clone()
    patched.model_options["transformer_options"]["optimized_attention_override"] = override
    assert torch.equal(sample(patched, steps=1), expected)
    image = [low_precision for tokens_seen, low_precision in seen if tokens_seen == adapter.loaded.spec.num_tokens]
    assert len(image) == adapter.loaded.spec.num_sites
    assert not any(image), "SageAttention must leave the image branch to PyTorch"
    assert any(low_precision for _, low_precision in seen)


def test_an_interrupt_stops_encoding(base_directory: object) -> None:
    import comfy.model_management

    progress = comfy_host.pack("nodes.progress")
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        list(progress.steps(iter([1]), [1]))
    assert list(progress.steps(iter([1, 2]), [1, 2])) == [1, 2]


def test_dtype_of_the_model_does_not_touch_the_patch(setting: tuple, apply: Callable) -> None:
    """ComfyUI offers the storage dtype, which is float8 for an fp8 base; the patch follows q instead."""
    model, adapter, tokens = setting
    patched = apply(model, adapter, tokens)
    slots = dict(patched.model_options["transformer_options"]["patches_replace"]["attn2"])
    patched.model_patches_to(torch.float8_e4m3fn)
    assert patched.model_options["transformer_options"]["patches_replace"]["attn2"] == slots
