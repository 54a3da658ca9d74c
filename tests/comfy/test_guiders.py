"""Each side of every guider gets its own tokens, whatever number the guider gives it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, tiny_unet

STEPS = 1
SIZE = 16  # of the latent; self-attention guidance wants more than 4


def conditioning(seed: int) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 7, tiny_unet.CONTEXT_DIM, generator=generator), {"pooled_output": torch.zeros(1, 1280)}]]


POSITIVE, NEGATIVE, OTHER = (conditioning(seed) for seed in range(3))


def cfg(model: Any) -> Any:
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(POSITIVE, NEGATIVE)
    guider.set_cfg(4.0)
    return guider


def positive_alone(model: Any) -> Any:
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": POSITIVE})
    guider.set_cfg(1.0)
    return guider


def dual(model: Any, nested: bool = False) -> Any:
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    guider = Guider_DualCFG(model)
    guider.set_conds(POSITIVE, OTHER, NEGATIVE)
    guider.set_cfg(3.0, 2.0, nested)
    return guider


def nested(model: Any) -> Any:
    return dual(model, nested=True)


def perpendicular(model: Any) -> Any:
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    guider = Guider_PerpNeg(model)
    guider.set_conds(POSITIVE, NEGATIVE, OTHER)
    guider.set_cfg(4.0, 1.0)
    return guider


def self_attention(model: Any) -> Any:
    from comfy_extras.nodes_sag import SelfAttentionGuidance

    result = SelfAttentionGuidance.execute(model=model, scale=0.5, blur_sigma=2.0)
    return cfg(result.result[0])


GUIDERS: dict[str, tuple[Callable[[Any], Any], dict[int, int]]] = {
    # the side of each text: 0 cond, 1 uncond; POSITIVE, NEGATIVE, OTHER
    "cfg": (cfg, {0: 0, 1: 1}),
    "one": (positive_alone, {0: 0}),
    "dual": (dual, {0: 0, 1: 1, 2: 1}),
    "dual nested": (nested, {0: 0, 1: 1, 2: 1}),
    "perpendicular": (perpendicular, {0: 0, 1: 1, 2: 1}),
    "self-attention": (self_attention, {0: 0, 1: 1}),
}


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "split"])
@pytest.mark.parametrize("name", GUIDERS)
def test_every_row_gets_the_tokens_of_its_side(
    name: str,
    together: bool,
    model: Callable,
    make_adapter: Callable,
    make_tokens: Callable,
    apply: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import comfy.sample
    import comfy.samplers

    adapter = make_adapter("base", "sd15")
    patched = apply(model("sd15"), adapter, make_tokens(adapter))
    if not together:  # as when memory is short
        monkeypatch.setattr(type(patched.model), "memory_required", lambda *_, **__: 1e30)
    make, sides = GUIDERS[name]
    seen: dict[int, set[int]] = {}

    def note(groups: tuple[int, ...], context: Tensor) -> None:
        for side, rows in zip(groups, context.chunk(len(groups)), strict=True):
            seen.setdefault(_text_of(rows), set()).add(side)

    _watch(monkeypatch, note)
    guider = make(patched)
    noise = torch.randn(1, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    sampler = comfy.samplers.sampler_object("euler")
    sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "normal", STEPS)
    with torch.inference_mode():
        guider.sample(noise, noise * 0, sampler, sigmas, disable_pbar=True)
    assert seen == {text: {side} for text, side in sides.items()}


def _text_of(context: Tensor) -> int:
    """Which of the three texts these rows are."""
    texts = [text[0][0] for text in (POSITIVE, NEGATIVE, OTHER)]
    return next(number for number, text in enumerate(texts) if torch.allclose(context[:1], text, atol=1e-5))


def _watch(monkeypatch: pytest.MonkeyPatch, note: Callable[..., None]) -> None:
    """Have `note` called with what each patch decides, and with the text the model was given."""
    patch = comfy_host.pack("nodes.patching.unet")
    original, text = patch.conditions, {}
    forward = tiny_text_hook(text)
    monkeypatch.setattr("comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel._forward", forward)

    def conditions(options: dict) -> tuple[int, ...]:
        groups = original(options)
        note(groups, text["context"])
        return groups

    monkeypatch.setattr(patch, "conditions", conditions)


def tiny_text_hook(text: dict) -> Callable[..., Any]:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    original = UNetModel._forward

    def forward(self: Any, x: Tensor, timesteps: Any = None, context: Any = None, *args: Any, **more: Any) -> Any:
        text["context"] = context
        return original(self, x, timesteps, context, *args, **more)

    return forward


def test_without_a_guider_one_is_uncond_and_every_other_number_cond() -> None:
    conditions = comfy_host.pack("nodes.patching.sides").conditions
    assert conditions({"cond_or_uncond": [0, 1, 2]}) == (0, 1, 0)
    assert conditions({"cond_or_uncond": [2]}) == (0,)
    assert conditions({"cond_or_uncond": [1, 0, 7]}) == (1, 0, 0)
    assert conditions({}) == (0,)


def test_a_text_on_both_sides_follows_its_number() -> None:
    """ComfyUI copies a conditioning with an area to the other side."""
    sides = comfy_host.pack("nodes.patching.sides")
    known = sides.sides_of({"positive": [{"uuid": "a"}, {"uuid": "b"}], "negative": [{"uuid": "c"}, {"uuid": "a"}]})
    options = {"cond_or_uncond": [0, 1, 1, 0], "uuids": ["a", "a", "b", "?"], sides.SIDES: known}
    assert sides.conditions(options) == (0, 1, 0, 0)
