"""Parts of one sampling on several devices, each with a thread, as ComfyUI's multi-GPU work units run them."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, tiny_unet

pytestmark = pytest.mark.parametrize("layout", tiny_unet.EITHER_LAYOUT)
USE = {"mask": torch.ones(1, 8, 8).triu(), "end_percent": 0.6}


def in_threads(model: Any) -> Any:
    """Each conditioning of a batch in a thread of its own, several times at once."""
    clone = model.clone()

    def wrapper(apply: Callable[..., Tensor], call: dict[str, Any]) -> Tensor:
        numbers = call["cond_or_uncond"]
        parts = {name: _part(value, len(numbers)) for name, value in call.items() if name != "c"}
        conditions = {name: _part(value, len(numbers)) for name, value in call["c"].items()}

        def one(number: int) -> Tensor:
            options = dict(call["c"]["transformer_options"])
            options |= {name: options[name][number : number + 1] for name in ("cond_or_uncond", "uuids")}
            given = {name: value[number] for name, value in conditions.items()} | {"transformer_options": options}
            with torch.inference_mode():
                return apply(parts["input"][number], parts["timestep"][number], **given)

        with ThreadPoolExecutor(8) as pool:
            drawn = list(pool.map(one, list(range(len(numbers))) * 4))
        for again in range(len(numbers), len(drawn)):
            assert torch.equal(drawn[again], drawn[again % len(numbers)])
        return torch.cat(drawn[: len(numbers)])

    clone.set_model_unet_function_wrapper(wrapper)
    return clone


def _part(value: Any, count: int) -> list[Any]:
    return list(value.chunk(count)) if isinstance(value, Tensor) else [value] * count


def test_threads_draw_what_one_does(
    layout: str, model: Callable, make_adapter: Callable, make_tokens: Callable, apply: Callable, sample: Callable
) -> None:
    adapter = make_adapter("base", layout)
    patched = apply(model(layout), adapter, make_tokens(adapter), **USE)
    torch.testing.assert_close(sample(in_threads(patched), steps=4), sample(patched, steps=4), rtol=1e-3, atol=1e-3)


def test_what_a_run_keeps_is_kept_for_each_device(
    layout: str,
    model: Callable,
    make_adapter: Callable,
    make_tokens: Callable,
    apply: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The meta device stands for a second one: what was made for one must not be handed to the other."""
    adapter = make_adapter("base", layout)
    patched = apply(model(layout), adapter, make_tokens(adapter), **USE)
    run_module, applied = comfy_host.pack("nodes.patching.run"), comfy_host.pack("nodes.patching.applied")
    from comfy.ldm.modules import attention

    # the others ask how much memory the device has
    monkeypatch.setattr(attention, "optimized_attention", attention.attention_pytorch)
    options = patched.model_options["transformer_options"]
    plan = applied.applied_to(options).plans[0]
    run = run_module.Run(applied.applied_to(options), patched.get_model_object("model_sampling"))
    site = plan.sites[0]
    made: dict[str, list[Tensor]] = {}
    for device in ("cpu", "meta", "cpu", "meta"):
        step = run_module.Step(run, options | {"cond_or_uncond": [1, 0], "sigmas": torch.ones(2, device=device)})
        q = torch.zeros(2, 64, site.dim, device=device)
        results = [step.add_images(q, q, site.address, (8, 8)) for _ in range(3)]
        assert {result.device.type for result in results} == {device}
        made.setdefault(device, []).extend(step._gates.values())
    assert {device: len(gates) for device, gates in made.items()} == {"cpu": 2, "meta": 2}, "one gate a step and device"
    assert {gate.device.type for gate in made["meta"]} == {"meta"}


def test_a_gate_is_decided_once_per_step(
    layout: str,
    model: Callable,
    make_adapter: Callable,
    make_tokens: Callable,
    apply: Callable,
    sample: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sigma_range = comfy_host.pack("ipadapter_core.branch.schedule").SigmaRange
    original, calls = sigma_range.gate, []

    def counted(self: Any, sigmas: Tensor) -> Tensor:
        calls.append(1)
        return original(self, sigmas)

    monkeypatch.setattr(sigma_range, "gate", counted)
    adapter = make_adapter("base", layout)
    sample(apply(model(layout), adapter, make_tokens(adapter), **USE), steps=3)
    assert len(calls) == 3


@pytest.mark.parametrize("kind", ["keys", "masks"])
def test_threads_at_different_windows_do_not_mix(
    layout: str, kind: str, model: Callable, make_adapter: Callable, make_tokens: Callable, apply: Callable
) -> None:
    frames, latents, adapter = 9, 2, make_adapter("base", layout)
    run_module, applied = comfy_host.pack("nodes.patching.run"), comfy_host.pack("nodes.patching.applied").applied_to
    if kind == "masks":
        patched = apply(model(layout), adapter, make_tokens(adapter), mask=torch.rand(frames, 8, 8))
    else:
        application = comfy_host.pack("nodes.patching.application")
        sites = application.fitting_sites(model(layout), adapter.loaded)
        strength = comfy_host.pack("ipadapter_core.strength.site").SiteStrength(1.0)
        numbers, tokens = range(len(sites.sites)), make_tokens(adapter, references=frames)
        of_site, strengths = dict.fromkeys(numbers, tokens), dict.fromkeys(numbers, strength)
        limits = application.Limits()
        patched = application.patch_sites(
            model(layout), sites, adapter.loaded, of_site, strengths, limits, per_frame=True
        )
    options = patched.model_options["transformer_options"]
    site = applied(options).plans[0].sites[0]
    q = torch.randn(2 * latents, 64, site.dim, generator=torch.Generator().manual_seed(1))

    def draw(run: Any, start: int) -> Tensor:
        window = {"sub_idxs": [start, start + 1]}
        step = run_module.Step(run, options | {"cond_or_uncond": [1, 0], "ad_params": window})
        with torch.inference_mode():
            return step.add_images(q, q, site.address, (8, 8))

    alone = {start: draw(run_module.Run(applied(options), None), start) for start in range(frames - 1)}
    shared, interval = run_module.Run(applied(options), None), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    try:
        with ThreadPoolExecutor(8) as pool:
            starts = list(alone) * 20
            drawn = list(pool.map(lambda start: draw(shared, start), starts))
    finally:
        sys.setswitchinterval(interval)
    for start, given in zip(starts, drawn, strict=True):
        torch.testing.assert_close(given, alone[start], rtol=1e-4, atol=1e-4)
