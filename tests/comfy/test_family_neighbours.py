"""Other packs beside ours, precisions, memory modes and errors, for every kind of base model beside UNets."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, families
from support.families import EACH, FAMILIES, apply, sample

pytestmark = pytest.mark.parametrize("name", EACH)
BLOCK = ("dit", "double_block", 1)


@pytest.fixture
def setting(name: str, base_directory: Path) -> families.Setting:
    return families.setting_of(name, base_directory)


class Around:
    """A block replacement of another pack; it changes nothing, or what the block gives."""

    def __init__(self, factor: float = 1.0) -> None:
        self.calls, self.factor = 0, factor

    def __call__(self, arguments: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        out = extra["original_block"](arguments)
        return out if self.factor == 1 else {**out, "img": out["img"] * self.factor}


def skip(arguments: dict[str, Any], _extra: dict[str, Any]) -> dict[str, Any]:
    """As ComfyUI's SkipLayerGuidanceSD3 leaves a block out."""
    return arguments


def replacing(model: Any, replacement: Callable) -> Any:
    clone = model.clone()
    clone.set_model_patch_replace(replacement, *BLOCK)
    return clone


def overriding(model: Any, override: Callable) -> Any:
    clone = model.clone()
    clone.model_options["transformer_options"]["optimized_attention_override"] = override
    return clone


@pytest.mark.parametrize("factor", [1.0, 0.8])
def test_block_replacements_before_and_behind_ours(name: str, setting: tuple, factor: float) -> None:
    families.needs_replacements(name)
    model, *rest = setting
    patched = apply(model, *rest)
    before, behind = Around(factor), Around(factor)
    first = sample(name, apply(replacing(model, before), *rest))
    second = sample(name, replacing(patched, behind))
    assert before.calls == behind.calls == 2
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)
    changed = sample(name, patched)
    assert torch.equal(first, changed) if factor == 1 else not torch.allclose(first, changed, rtol=1e-3)


def test_a_block_that_another_pack_leaves_out_gets_nothing(name: str, setting: tuple) -> None:
    families.needs_replacements(name)
    model, *rest = setting
    without = replacing(model, skip)
    first, second = sample(name, apply(without, *rest)), sample(name, replacing(apply(model, *rest), skip))
    assert torch.equal(first, second)
    assert not torch.allclose(first, sample(name, without), rtol=1e-3)


def test_attention_overrides_are_kept_and_see_both_branches(name: str, setting: tuple) -> None:
    model, *rest = setting
    calls: list[int] = []

    def override(function: Callable, *args: Any, **kwargs: Any) -> Tensor:
        given = kwargs["transformer_options"]["optimized_attention_override"]
        assert override in (given, getattr(given, "base", None))  # ours around it stands in no block's way
        calls.append(1)
        return function(*args, **kwargs)

    sample(name, overriding(model, override), steps=1)
    plain = len(calls)
    wanted = sample(name, apply(model, *rest), steps=1)
    for patched in (apply(overriding(model, override), *rest), overriding(apply(model, *rest), override)):
        calls.clear()
        assert torch.equal(sample(name, patched, steps=1), wanted)
        assert len(calls) == plain + len(FAMILIES[name].sites)


def test_an_override_that_hands_out_what_it_keeps(name: str, setting: tuple) -> None:
    """A cache of attention: what it gave must not be changed behind its back."""
    model, *rest = setting
    given: list[tuple[Tensor, Tensor]] = []

    def override(function: Callable, *args: Any, **kwargs: Any) -> Tensor:
        out = function(*args, **kwargs)
        given.append((out, out.clone()))
        return out

    sample(name, overriding(apply(model, *rest), override), steps=1)
    assert given
    assert all(torch.equal(*pair) for pair in given)


def test_options_that_another_pack_copies_whole(name: str, setting: tuple) -> None:
    model, *rest = setting
    patched = apply(model, *rest)
    copied = patched.clone()
    copied.model_options = copy.deepcopy(patched.model_options)
    assert copied.model_patches_models() == patched.model_patches_models()
    assert torch.equal(sample(name, copied), sample(name, patched))


def test_an_adapter_that_is_only_partly_on_the_device(name: str, setting: tuple) -> None:
    from comfy.model_management import unload_all_models

    model, adapter, tokens = setting
    wanted = sample(name, apply(model, adapter, tokens))
    unload_all_models()
    adapter.patcher.partially_load(adapter.patcher.load_device, extra_memory=adapter.patcher.model_size() // 2)
    try:
        assert torch.equal(sample(name, apply(model, adapter, tokens)), wanted)
    finally:
        adapter.patcher.detach()


def test_cond_and_uncond_apart_draw_what_they_draw_together(
    name: str, setting: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, *rest = setting
    together = sample(name, apply(model, *rest))
    monkeypatch.setattr(type(model.model), "memory_required", lambda *_, **__: 1e30)
    torch.testing.assert_close(sample(name, apply(model, *rest)), together, rtol=1e-4, atol=1e-5)


def test_the_old_loader_gives_it_to_the_old_nodes(name: str, setting: tuple, base_directory: Path) -> None:
    pipeline = comfy_host.run("IPAdapterModelLoader", ipadapter_file=f"{name}-0.safetensors")
    assert {"image_proj", "ip_adapter"} <= set(pipeline)


def test_a_comfyui_that_asks_no_patches_is_named_before_anything_is_patched(
    name: str, setting: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = comfy_host.pack("nodes.patching.hooks")
    kind = setting[1].spec.backbone
    if kind not in hooks.NEEDED:
        pytest.skip("every ComfyUI from 0.16.3 on has its hooks")
    monkeypatch.setitem(hooks.NEEDED, kind, replace(hooks.NEEDED[kind], names=("patch_of_another_time",)))
    with pytest.raises(ValueError, match=r"models ask no patch_of_another_time.*What to do: update ComfyUI"):
        apply(*setting)


def test_what_another_packs_replacement_keeps_is_not_changed(name: str, setting: tuple) -> None:
    families.needs_replacements(name)
    kept: list[tuple[Tensor, Tensor]] = []

    def keep(arguments: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        out = extra["original_block"](arguments)
        given = out["img"].clone()
        kept.append((given, given.clone()))
        return {**out, "img": given}

    model, *rest = setting
    references = [torch.randn(1, FAMILIES[name].channels, 8, 4)] if rest[0].spec.backbone == "FLUX" else None
    prompts = families.prompts_of(name, **({"reference_latents": references} if references else {}))
    seen = []
    patched = apply(replacing(model, keep), *rest)
    group = patched.model_options["transformer_options"]["patches_replace"]["dit"][BLOCK[1:]]
    add = type(group).__call__

    def after(self: Any, arguments: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        out = add(self, arguments, extra)
        seen.append(all(torch.equal(*pair) for pair in kept))
        kept.clear()  # the model goes on with it, and changes it
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(group), "__call__", after)
        sample(name, patched, steps=1, prompts=prompts)
    assert seen
    assert all(seen)


def test_easycache_leaves_out_steps_and_nothing_else(name: str, setting: tuple) -> None:
    from comfy_extras.nodes_easycache import EasyCacheNode

    model, *rest = setting

    def cached(given: Any, threshold: float) -> Any:
        return EasyCacheNode.execute(given, threshold, 0.0, 1.0, verbose=False).result[0]

    patched = apply(model, *rest)
    whole = sample(name, patched, steps=6)
    torch.testing.assert_close(sample(name, cached(patched, 0.0), steps=6), whole, rtol=1e-5, atol=1e-5)
    before, behind = (
        sample(name, given, steps=6) for given in (apply(cached(model, 1e9), *rest), cached(patched, 1e9))
    )
    assert torch.equal(before, behind)
    acts = FAMILIES[name].base != "SD3.5-Large"  # ComfyUI asks no wrappers around SD3's network
    assert torch.allclose(before, whole, rtol=1e-3) != acts, "no step was left out, so nothing was tried"
