"""The laws of the design, on tiny UNets of both layouts, sampled by ComfyUI."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from support import comfy_host

LAYOUTS = (pytest.param("sd15", marks=pytest.mark.smoke_long), "sdxl")
pytestmark = [pytest.mark.smoke, pytest.mark.parametrize("layout", LAYOUTS)]


def attn2(model: Any) -> dict:
    return dict(model.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {}))


def test_strength_zero_returns_the_model_itself(setting: tuple, apply: Callable) -> None:
    model, adapter, tokens = setting
    assert apply(model, adapter, tokens, strength=0.0) is model


def test_strength_one_changes_the_picture(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens = setting
    assert not torch.allclose(sample(apply(model, adapter, tokens)), sample(model), rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_masks_are_no_adapter_and_no_mask(
    setting: tuple, apply: Callable, sample: Callable, value: float
) -> None:
    model, adapter, tokens = setting
    masked = apply(model, adapter, tokens, mask=torch.full((1, 40, 24), value))
    assert torch.equal(sample(masked), sample(model if value == 0 else apply(model, adapter, tokens)))


def test_a_mask_of_zeros_and_ones_per_latent_acts_per_latent(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens = setting
    masks = torch.stack((torch.zeros(16, 16), torch.ones(16, 16)))
    mixed = sample(apply(model, adapter, tokens, mask=masks), batch=2)
    assert torch.equal(mixed[0], sample(model, batch=2)[0])
    assert torch.equal(mixed[1], sample(apply(model, adapter, tokens), batch=2)[1])


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_an_empty_range_is_no_adapter(
    setting: tuple, apply: Callable, sample: Callable, start: float, end: float
) -> None:
    model, adapter, tokens = setting
    patched = apply(model, adapter, tokens, start_percent=start, end_percent=end)
    assert torch.equal(sample(patched), sample(model))


def test_a_range_that_no_step_falls_into_is_no_adapter(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens = setting
    # Two steps at the largest and at a middle sigma: neither lies in the last tenth.
    patched = apply(model, adapter, tokens, start_percent=0.9, end_percent=0.99)
    assert attn2(patched)
    assert torch.equal(sample(patched), sample(model))


def test_a_range_over_some_steps_lies_between(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens = setting
    early = sample(apply(model, adapter, tokens, end_percent=0.2), steps=4)
    assert not torch.allclose(early, sample(model, steps=4), rtol=1e-3)
    assert not torch.allclose(early, sample(apply(model, adapter, tokens), steps=4), rtol=1e-3)


def test_two_adapters_commute(
    setting: tuple, layout: str, apply: Callable, sample: Callable, make_adapter: Callable, make_tokens: Callable
) -> None:
    model, first, first_tokens = setting
    second = make_adapter("base", layout, num_tokens=6, seed=5)
    second_tokens = make_tokens(second, seed=7)
    one = apply(apply(model, first, first_tokens, strength=0.7), second, second_tokens, strength=0.4)
    two = apply(apply(model, second, second_tokens, strength=0.4), first, first_tokens, strength=0.7)
    torch.testing.assert_close(sample(one), sample(two), rtol=1e-4, atol=1e-3)
    assert not torch.allclose(sample(one), sample(apply(model, first, first_tokens, strength=0.7)), rtol=1e-3)


def test_applying_to_a_clone_leaves_the_original_alone(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens = setting
    upstream = apply(model, adapter, tokens, strength=0.5)
    before, slots = sample(upstream), attn2(upstream)
    for _ in range(2):  # as when a cached upstream MODEL is used by two queues
        apply(upstream, adapter, tokens, strength=2.0)
    assert attn2(upstream) == slots
    assert attn2(model) == {}
    assert torch.equal(sample(upstream), before)


def test_the_same_graph_twice_gives_the_same_output(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens = setting
    first, second = (sample(apply(model, adapter, tokens)) for _ in range(2))
    assert torch.equal(first, second)


def test_every_site_is_called_once_per_forward(
    setting: tuple, apply: Callable, sample: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapter, tokens = setting
    patch_class = comfy_host.pack("nodes.patching.unet").IPAttentionPatch
    calls: Counter[tuple] = Counter()
    original = patch_class.__call__

    def counted(self: Any, q: Any, k: Any, v: Any, extra_options: dict) -> Any:
        calls[(*extra_options["block"], extra_options["block_index"])] += 1
        return original(self, q, k, v, extra_options)

    monkeypatch.setattr(patch_class, "__call__", counted)
    sample(apply(model, adapter, tokens), steps=1)
    assert len(calls) == adapter.loaded.spec.num_sites
    assert set(calls.values()) == {1}


def test_a_run_dies_with_its_sampling(
    setting: tuple, apply: Callable, sample: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapter, tokens = setting
    runs = watch_runs(monkeypatch)
    sample(apply(model, adapter, tokens, mask=torch.rand(1, 16, 16), end_percent=0.5))
    assert len(runs) == 1
    assert runs[0]() is None


def test_an_interrupted_sampling_leaves_nothing(
    setting: tuple, apply: Callable, sample: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    model, adapter, tokens = setting
    runs, patched = watch_runs(monkeypatch), apply(model, adapter, tokens)
    with monkeypatch.context() as interrupted:

        def interrupt(*_: object, **__: object) -> None:
            raise comfy.model_management.InterruptProcessingException

        interrupted.setattr(comfy_host.pack("nodes.patching.run"), "add_image_attention", interrupt)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(patched)
    gc.collect()  # the traceback held the frames
    assert [run() for run in runs] == [None]
    assert torch.equal(sample(patched), sample(apply(model, adapter, tokens)))


def watch_runs(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref]:
    """Every sampling run that is made from now on."""
    run = comfy_host.pack("nodes.patching.run").Run
    made: list[weakref.ref] = []
    original = run.__init__

    def noted(self: Any, *args: Any, **more: Any) -> None:
        made.append(weakref.ref(self))
        original(self, *args, **more)

    monkeypatch.setattr(run, "__init__", noted)
    return made
