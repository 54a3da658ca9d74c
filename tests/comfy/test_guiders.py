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


def perpendicular_node(model: Any) -> Any:
    """The older node, which encodes its empty prompt itself and samples it alone, as number 0."""
    from comfy_extras.nodes_perpneg import PerpNeg

    made: Any = PerpNeg.execute(model=model, empty_conditioning=OTHER, neg_scale=1.0)
    return cfg(made.result[0])


def dual_model(model: Any) -> Any:
    """The negative is sampled with a model of its own, from copies of the guider's conditionings."""
    from comfy_extras import nodes_custom_sampler

    if not hasattr(nodes_custom_sampler, "Guider_DualModel"):
        pytest.skip("this ComfyUI has no such guider")
    guider = nodes_custom_sampler.Guider_DualModel(model, model.clone())
    guider.set_conds(POSITIVE, NEGATIVE)
    guider.set_cfg(4.0)
    return guider


def other_names(model: Any) -> Any:
    """A guider of another pack, with names of its own and the negative first."""
    import comfy.samplers

    class Guider(comfy.samplers.CFGGuider):
        def predict_noise(self, x: Tensor, timestep: Tensor, model_options: dict, seed: int | None = None) -> Tensor:
            lists = [self.conds["uncond_2"], self.conds["prompt_b"], self.conds["prompt_a"]]
            first, second, third = comfy.samplers.calc_cond_batch(self.inner_model, lists, x, timestep, model_options)
            return first + 2 * (second - first) + (third - first)

    guider = Guider(model)
    guider.inner_set_conds({"prompt_a": POSITIVE, "uncond_2": NEGATIVE, "prompt_b": OTHER})
    return guider


def with_area(text: list) -> list:
    """The text once for all of the picture and once for its left half; ComfyUI copies the latter to the other side."""
    tensor, options = text[0]
    return [[tensor, options], [tensor, options | {"area": (SIZE, SIZE // 2, 0, 0), "strength": 1.0}]]


def area_dual(model: Any, nested: bool = False) -> Any:
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    guider = Guider_DualCFG(model)
    guider.set_conds(with_area(POSITIVE), OTHER, NEGATIVE)
    guider.set_cfg(3.0, 2.0, nested)
    return guider


def area_nested(model: Any) -> Any:
    return area_dual(model, nested=True)


def area_perpendicular(model: Any) -> Any:
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    guider = Guider_PerpNeg(model)
    guider.set_conds(with_area(POSITIVE), NEGATIVE, OTHER)
    guider.set_cfg(4.0, 1.0)
    return guider


GUIDERS: dict[str, tuple[Callable[[Any], Any], dict[int, int]]] = {
    # the side of each text: 0 cond, 1 uncond; POSITIVE, NEGATIVE, OTHER
    "cfg": (cfg, {0: 0, 1: 1}),
    "one": (positive_alone, {0: 0}),
    "dual": (dual, {0: 0, 1: 1, 2: 1}),
    "dual nested": (nested, {0: 0, 1: 1, 2: 1}),
    "perpendicular": (perpendicular, {0: 0, 1: 1, 2: 1}),
    "self-attention": (self_attention, {0: 0, 1: 1}),
    "perpendicular node": (perpendicular_node, {0: 0, 1: 1, 2: 1}),
    "dual model": (dual_model, {0: 0, 1: 1}),
    "names of another pack": (other_names, {0: 0, 1: 1, 2: 0}),
}


def draw(guider: Any) -> Tensor:
    """Sample with a guider."""
    import comfy.samplers

    noise = torch.randn(1, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    sampler = comfy.samplers.sampler_object("euler")
    schedule = guider.model_patcher.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(schedule, "normal", STEPS)
    with torch.inference_mode():
        return guider.sample(noise, noise * 0, sampler, sigmas, disable_pbar=True)


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
    adapter = make_adapter("base", "sd15")
    patched = apply(model("sd15"), adapter, make_tokens(adapter))
    if not together:  # as when memory is short
        monkeypatch.setattr(type(patched.model), "memory_required", lambda *_, **__: 1e30)
    make, sides = GUIDERS[name]
    seen: dict[int, set[int]] = {}

    _watch(monkeypatch, lambda side, text: seen.setdefault(text, set()).add(side))
    draw(make(patched))
    assert seen == {text: {side} for text, side in sides.items()}


# The lists as these guiders hand them to the sampler: the side of each number.
WITH_AREAS = {
    "dual": (area_dual, (1, 1, 0)),
    "dual nested": (area_nested, (1, 1, 0)),
    "perpendicular": (area_perpendicular, (0, 1, 1)),
}


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "split"])
@pytest.mark.parametrize("name", WITH_AREAS)
def test_a_prompt_for_an_area_leaves_every_list_on_its_side(
    name: str,
    together: bool,
    model: Callable,
    make_adapter: Callable,
    make_tokens: Callable,
    apply: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = make_adapter("base", "sd15")
    patched = apply(model("sd15"), adapter, make_tokens(adapter))
    if not together:
        monkeypatch.setattr(type(patched.model), "memory_required", lambda *_, **__: 1e30)
    make, sides = WITH_AREAS[name]
    seen: set[tuple[int, int, bool]] = set()
    step = comfy_host.pack("nodes.patching.run").Step
    original = step.rows

    def rows(self: Any, *args: Any) -> Any:
        found = original(self, *args)
        seen.update((block.number, block.side, block.place is not None) for block in found.blocks)
        return found

    monkeypatch.setattr(step, "rows", rows)
    draw(make(patched))
    assert {(number, side) for number, side, _ in seen} == set(enumerate(sides))
    # what the case is about: more than the positive has the area
    assert len({number for number, _, has_place in seen if has_place}) > 1


def _text_of(context: Tensor) -> int:
    """Which of the three texts this row is."""
    texts = [text[0][0] for text in (POSITIVE, NEGATIVE, OTHER)]
    return next(number for number, text in enumerate(texts) if torch.allclose(context[None], text, atol=1e-5))


def _watch(monkeypatch: pytest.MonkeyPatch, note: Callable[[int, int], None]) -> None:
    """Have `note` called with the side each patch decides for a row, and with the text the model was given there."""
    step, text = comfy_host.pack("nodes.patching.run").Step, {}
    original = step.rows
    forward = tiny_text_hook(text)
    monkeypatch.setattr("comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel._forward", forward)

    def rows(self: Any, *args: Any) -> Any:
        found = original(self, *args)
        sides = [side for side in found.sides for _ in range(found.latents)]
        for side, context in zip(sides, text["context"], strict=True):
            note(side, _text_of(context))
        return found

    monkeypatch.setattr(step, "rows", rows)


def tiny_text_hook(text: dict) -> Callable[..., Any]:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    original = UNetModel._forward

    def forward(self: Any, x: Tensor, timesteps: Any = None, context: Any = None, *args: Any, **more: Any) -> Any:
        text["context"] = context
        return original(self, x, timesteps, context, *args, **more)

    return forward


def test_without_a_guider_one_is_uncond_and_every_other_number_cond() -> None:
    step_of = comfy_host.pack("nodes.patching.run").step_of
    assert step_of({"cond_or_uncond": [0, 1, 2]}).rows(3).sides == (0, 1, 0)
    assert step_of({"cond_or_uncond": [2]}).rows(1).sides == (0,)
    assert step_of({"cond_or_uncond": [1, 0, 7]}).rows(3).sides == (1, 0, 0)
    assert step_of({}).rows(1).sides == (0,)
