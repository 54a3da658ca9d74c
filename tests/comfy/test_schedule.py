"""IP-Adapter Schedule on every kind of base model: strengths over steps and over frames."""

from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host, families
from support.families import EACH, FAMILIES, apply, sample

pytestmark = pytest.mark.parametrize("name", EACH)
PLAIN = {
    "over": "steps",
    "curve": "points",
    "low": 0.0,
    "high": 1.0,
    "points": "0: 1",
    "frames": 3,
    "fade_references": False,
}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture
def setting(name: str, base_directory: Path) -> families.Setting:
    return families.setting_of(name, base_directory)


def schedule(**changes: Any) -> Any:
    return comfy_host.run("IPASchedule", **PLAIN | changes)


def test_a_jump_draws_what_two_ranges_draw(name: str, setting: tuple) -> None:
    model, *rest = setting
    early = apply(model, *rest, strength=0.9, end_percent=0.37)
    both = sample(name, apply(early, *rest, strength=0.36, start_percent=0.37), steps=4)
    jump = schedule(points="0: 1, 0.37: 1, 0.37: 0.4, 1: 0.4")
    drawn = sample(name, apply(*setting, strength=0.9, schedule=jump), steps=4)
    if (
        FAMILIES[name].base == "Anima" and "lucifer" in name
    ):  # a strength multiplies its tokens, a schedule what it adds
        assert not torch.allclose(drawn, sample(name, apply(*setting, strength=0.9), steps=4), rtol=1e-3)
        return
    torch.testing.assert_close(drawn, both, **CLOSE)
    assert not torch.allclose(drawn, sample(name, apply(*setting, strength=0.9), steps=4), rtol=1e-3)


def test_the_neutral_one_is_none_and_nothing_is_no_adapter(name: str, setting: tuple) -> None:
    plain = sample(name, apply(*setting))
    assert torch.equal(sample(name, apply(*setting, schedule=schedule())), plain)
    assert torch.equal(sample(name, apply(*setting, schedule=schedule(curve="constant"))), plain)
    nothing = sample(name, apply(*setting, schedule=schedule(points="0: 0")))
    torch.testing.assert_close(nothing, sample(name, setting[0]), rtol=0, atol=1e-6)


def test_every_frame_has_its_strength(name: str, setting: tuple) -> None:
    rising = schedule(over="frames", curve="fade in", low=0.2)
    whole = sample(name, apply(*setting, schedule=rising), batch=3)
    for frame, strength in enumerate((0.2, 0.6, 1.0)):
        alone = sample(name, apply(*setting, strength=strength), batch=3)
        torch.testing.assert_close(whole[frame], alone[frame], **CLOSE)


def test_references_fade_into_one_another(name: str, setting: tuple) -> None:
    model, adapter, _ = setting
    both = families.tokens_of(name, adapter, references=2)
    fading = schedule(over="frames", curve="constant", fade_references=True)
    whole = sample(name, apply(model, adapter, both, schedule=fading), batch=3)
    for frame, number in ((0, 0), (2, 1)):
        one = comfy_host.pack("ipadapter_core.branch.tokens").only_reference(both, number)
        alone = sample(name, apply(model, adapter, one), batch=3)
        torch.testing.assert_close(whole[frame], alone[frame], **CLOSE)
        assert not torch.allclose(whole[1], alone[1], rtol=1e-3)


def test_one_reference_fades_into_none(name: str, setting: tuple) -> None:
    fading = schedule(over="frames", fade_references=True)
    with pytest.raises(ValueError, match=r"What to do: connect a batch of pictures, or switch fading off"):
        apply(*setting, schedule=fading)
