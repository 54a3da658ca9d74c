"""The laws of the design, for every kind of base model beside UNets, sampled by ComfyUI."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host, families
from support.families import EACH, FAMILIES, apply, differs, sample

pytestmark = [pytest.mark.smoke, pytest.mark.parametrize("name", EACH)]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def setting(name: str, base_directory: Path) -> families.Setting:
    return families.setting_of(name, base_directory)


def test_the_image_changes_the_picture_and_leaves_the_model_alone(name: str, setting: tuple) -> None:
    model = setting[0]
    before = sample(name, model)
    patched = apply(*setting)
    drawn = sample(name, patched)
    assert differs(drawn, before)
    assert torch.equal(sample(name, patched), drawn)
    assert torch.equal(sample(name, model), before)


@pytest.mark.parametrize(
    "neutral",
    [{"strength": 0.0}, {"mask": torch.zeros(1, 8, 8)}, {"start_percent": 0.5, "end_percent": 0.5}],
    ids=["strength", "mask", "range"],
)
def test_what_is_neutral_changes_nothing(name: str, setting: tuple, neutral: dict[str, Any]) -> None:
    assert torch.equal(sample(name, apply(*setting, **neutral)), sample(name, setting[0]))


def test_a_range_that_no_step_falls_into_changes_nothing(name: str, setting: tuple) -> None:
    patched = apply(*setting, start_percent=0.98, end_percent=0.99)
    assert patched is not setting[0]
    assert torch.equal(sample(name, patched), sample(name, setting[0]))


def test_a_range_over_some_steps_lies_between(name: str, setting: tuple) -> None:
    early = sample(name, apply(*setting, end_percent=0.3), steps=4)
    assert differs(early, sample(name, setting[0], steps=4))
    assert differs(early, sample(name, apply(*setting), steps=4))


@pytest.mark.parametrize("size", [(8, 8), (9, 6)], ids=["even", "odd"])
def test_a_mask_of_ones_is_no_mask(name: str, setting: tuple, size: tuple[int, int]) -> None:
    masked = apply(*setting, mask=torch.stack((torch.ones(16, 16), torch.ones(16, 16))))
    torch.testing.assert_close(
        sample(name, masked, size=size, batch=2), sample(name, apply(*setting), size=size, batch=2), **CLOSE
    )


def test_a_mask_of_zeros_and_ones_per_latent_acts_per_latent(name: str, setting: tuple) -> None:
    mixed = sample(name, apply(*setting, mask=torch.stack((torch.zeros(8, 8), torch.ones(8, 8)))), batch=2)
    assert torch.equal(mixed[0], sample(name, setting[0], batch=2)[0])
    torch.testing.assert_close(mixed[1], sample(name, apply(*setting), batch=2)[1], **CLOSE)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_a_prompt_for_an_area_gets_the_part_of_the_mask_that_lies_there(name: str, setting: tuple, left: bool) -> None:
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    there, elsewhere = (mask, 1 - mask) if left else (1 - mask, mask)
    prompts = families.prompts_of(name, area=(16, 8, 0, 0 if left else 8), strength=1.0)
    how: dict[str, Any] = {"prompts": prompts, "size": (16, 16), "cfg": 1.0}
    without, whole = sample(name, setting[0], **how), sample(name, apply(*setting), **how)
    assert differs(without, whole)
    assert torch.equal(sample(name, apply(*setting, mask=elsewhere), **how), without)
    torch.testing.assert_close(sample(name, apply(*setting, mask=there), **how), whole, **CLOSE)


def test_two_adapters_commute(name: str, setting: tuple, base_directory: Path) -> None:
    model, first, tokens = setting
    second = families.adapter_of(name, base_directory, seed=5)
    others = families.tokens_of(name, second, seed=7)
    one = apply(apply(model, first, tokens, strength=0.7), second, others, strength=0.4)
    two = apply(apply(model, second, others, strength=0.4), first, tokens, strength=0.7)
    assert differs(sample(name, one), sample(name, apply(model, first, tokens, strength=0.7)))
    torch.testing.assert_close(sample(name, one), sample(name, two), **CLOSE)


def test_every_planned_site_is_called_once(name: str, setting: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = comfy_host.pack("nodes.patching.run").Step, Counter()
    original = step.acting

    def counted(self: Any, address: tuple, *more: Any) -> Any:
        for found in original(self, address, *more):
            calls[address] += 1
            yield found

    monkeypatch.setattr(step, "acting", counted)
    sample(name, apply(*setting), steps=1, cfg=1.0)
    assert calls == dict.fromkeys(FAMILIES[name].sites, 1)


def test_a_batch_draws_what_its_latents_draw_alone(name: str, setting: tuple) -> None:
    patched, noise = apply(*setting), []

    def note(_step: int, _denoised: Tensor, x: Tensor, _steps: int) -> None:
        noise.append(x.clone())

    both = sample(name, patched, batch=2, callback=note)
    assert noise[0].shape[0] == 2
    first = sample(name, patched, batch=1)
    torch.testing.assert_close(both[:1], first, **CLOSE)


def test_several_references_act_together(name: str, setting: tuple) -> None:
    model, adapter, tokens = setting
    two = families.tokens_of(name, adapter, references=2)
    assert differs(sample(name, apply(model, adapter, two)), sample(name, apply(model, adapter, tokens)))


def test_layer_weights_name_the_blocks(name: str, setting: tuple) -> None:
    sites = FAMILIES[name].sites
    neutral = dict.fromkeys(("input", "middle", "output", "style", "composition"), 1.0)
    group, number, _ = sites[0]
    by_name, by_index = (
        comfy_host.run("IPALayerWeights", site_factors=text, **neutral) for text in (f"{group}.{number}: 0", "0: 0")
    )
    drawn = sample(name, apply(*setting, layer_weights=by_name))
    assert torch.equal(drawn, sample(name, apply(*setting, layer_weights=by_index)))
    assert differs(drawn, sample(name, apply(*setting)))
    with pytest.raises(ValueError, match="which this model does not have"):
        apply(*setting, layer_weights=comfy_host.run("IPALayerWeights", site_factors="output.1: 0", **neutral))


def test_an_adapter_of_another_base_is_refused(name: str, setting: tuple, model: Any, make_adapter: Any) -> None:
    unet_adapter = make_adapter("base", "sd15").loaded
    with pytest.raises(ValueError, match=r"an adapter for .* and a model of the .* kind"):
        apply(setting[0], unet_adapter, setting[2])
    with pytest.raises(ValueError, match=r"an adapter for .* and a model of the .* kind"):
        apply(model("sd15"), *setting[1:])
