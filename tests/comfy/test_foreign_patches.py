"""Other packs before and after ours in the same attn2 slots."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host


class ForeignPatch:
    """As InstantID, PuLID and IPAdapter_plus install theirs: callable, with `add`."""

    def __init__(self, callback: Callable[..., Tensor], **kwargs: Any) -> None:
        self.added = [(callback, kwargs)]
        self.calls = 0

    def add(self, callback: Callable[..., Tensor], **kwargs: Any) -> None:
        self.added.append((callback, kwargs))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any]) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        self.calls += 1
        out = optimized_attention(q, k, v, extra_options["n_heads"])
        for callback, kwargs in self.added:
            out = out + callback(out, q, k, v, extra_options, **kwargs)
        return out


def install_foreign(model: Any, callback: Callable[..., Tensor], key: tuple, **kwargs: Any) -> Any:
    """Their protocol: a new patch in an empty slot, else `add` on whatever is there."""
    clone = model.clone()
    options = clone.model_options["transformer_options"] = clone.model_options["transformer_options"].copy()
    options["patches_replace"] = options.get("patches_replace", {}).copy()
    slots = options["patches_replace"]["attn2"] = options["patches_replace"].get("attn2", {}).copy()
    if key in slots:
        slots[key].add(callback, **kwargs)
    else:
        slots[key] = ForeignPatch(callback, **kwargs)
    return clone


def shift(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, extra_options: dict[str, Any], amount: float = 0.3, **_: Any
) -> Tensor:
    return torch.full_like(out, amount)


# Where the older packs put theirs: without the layer's index on SD1.5, with it on SDXL.
KEYS = {"sd15": ("output", 4), "sdxl": ("output", 1, 0)}


@pytest.fixture(params=KEYS)
def setting(request: pytest.FixtureRequest, model: Callable, make_adapter: Callable, make_tokens: Callable) -> tuple:
    adapter = make_adapter("base", request.param)
    return model(request.param), adapter, make_tokens(adapter), KEYS[request.param]


def test_a_foreign_patch_before_ours_is_still_called(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens, key = setting
    foreign = install_foreign(model, shift, key)
    patch = foreign.model_options["transformer_options"]["patches_replace"]["attn2"][key]
    both = apply(foreign, adapter, tokens)
    result = sample(both, steps=1)
    assert patch.calls == 1
    assert not torch.allclose(result, sample(apply(model, adapter, tokens), steps=1), rtol=1e-4)
    assert not torch.allclose(result, sample(foreign, steps=1), rtol=1e-4)


def test_before_and_after_are_the_same_sum(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens, key = setting
    before = apply(install_foreign(model, shift, key), adapter, tokens)
    after = install_foreign(apply(model, adapter, tokens), shift, key)
    torch.testing.assert_close(sample(before), sample(after), rtol=1e-4, atol=1e-3)


def test_a_strength_of_zero_keeps_the_foreign_result(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens, key = setting
    foreign = install_foreign(model, shift, key)
    assert torch.equal(sample(apply(foreign, adapter, tokens, strength=0.0)), sample(foreign))


def test_add_on_a_clone_does_not_reach_the_original(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens, key = setting
    ours = apply(model, adapter, tokens)
    before = sample(ours)
    first = install_foreign(ours, shift, key)
    with_one = sample(first)
    second = install_foreign(first, shift, key, amount=-1.0)
    assert torch.equal(sample(ours), before)
    assert torch.equal(sample(first), with_one)
    assert not torch.allclose(sample(second), with_one, rtol=1e-4)


def test_stacking_on_top_of_an_added_callback_keeps_it(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens, key = setting
    added = install_foreign(apply(model, adapter, tokens, strength=0.5), shift, key)
    stacked = apply(added, adapter, tokens, strength=0.5)
    other_order = install_foreign(apply(model, adapter, tokens), shift, key)
    torch.testing.assert_close(sample(stacked), sample(other_order), rtol=1e-4, atol=1e-3)


def test_an_added_callback_keeps_to_its_sigma_range(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens, key = setting
    ours = apply(model, adapter, tokens)
    never = install_foreign(ours, shift, key, sigma_start=-1.0, sigma_end=-2.0)
    always = install_foreign(ours, shift, key, sigma_start=1e9, sigma_end=0.0)
    assert torch.equal(sample(never), sample(ours))
    assert torch.equal(sample(always), sample(install_foreign(ours, shift, key)))


def test_a_foreign_patch_with_networks_and_devices_keeps_them(setting: tuple, apply: Callable) -> None:
    model, adapter, tokens, key = setting

    class WithNetwork(ForeignPatch):
        moved: Any = None
        cleaned = False

        def models(self) -> list[Any]:
            return [adapter.loaded.patcher]

        def to(self, target: Any) -> "WithNetwork":
            new = WithNetwork(shift)
            new.moved = target
            return new

        def cleanup(self) -> None:
            WithNetwork.cleaned = True

    foreign = install_foreign(model, shift, key)
    foreign.model_options["transformer_options"]["patches_replace"]["attn2"][key] = WithNetwork(shift)
    patched = apply(foreign, adapter, tokens)
    assert adapter.loaded.patcher in patched.model_patches_models()
    patched.model_patches_to(torch.float16)
    slot = patched.model_options["transformer_options"]["patches_replace"]["attn2"][key]
    assert isinstance(slot, comfy_host.pack("nodes.patching.unet").IPAttentionPatch)
    assert slot.base.moved == torch.float16
    if hasattr(patched, "model_patches_call_function"):  # ComfyUI calls it on any patch from 0.18 on
        patched.cleanup()
        assert WithNetwork.cleaned


def test_options_that_another_pack_copies_whole(setting: tuple, apply: Callable, sample: Callable) -> None:
    """At a node, and while sampling."""
    model, adapter, tokens, _ = setting
    patched = apply(model, adapter, tokens, end_percent=0.6)
    wanted = sample(patched)
    copied = patched.clone()
    copied.model_options = copy.deepcopy(patched.model_options)
    assert torch.equal(sample(copied), wanted)
    seen = []

    def wrapper(executor: Any, model: Any, conds: Any, x: Tensor, timestep: Any, model_options: dict) -> Any:
        seen.append(1)
        return executor(model, conds, x, timestep, copy.deepcopy(model_options))

    while_sampling = patched.clone()
    while_sampling.add_wrapper("calc_cond_batch", wrapper)
    assert torch.equal(sample(while_sampling), wanted)
    assert seen
