"""When a record is whole, what the heat map nodes say where it is not, and what they show where it is."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host

PLAIN = {"adapter": 0, "reference": 0, "step": 0, "blending": 0.5}
LEFT = torch.ones(1, 64, 64)
LEFT[..., 32:] = 0
PICTURE = torch.full((1, 48, 80, 3), 0.5)


@pytest.fixture
def layout() -> str:
    return "sdxl"


@pytest.fixture
def patched(setting: tuple, apply: Callable) -> Any:
    return apply(*setting, mask=LEFT)


def record_of(model: Any) -> tuple[Any, Any]:
    return comfy_host.call("IPARecord", model=model)


def heat(record: Any, image: Tensor = PICTURE, **changes: Any) -> tuple[Tensor, Tensor]:
    return comfy_host.call("IPAHeatMap", record=record, image=image, **PLAIN | changes)


def test_it_lies_where_the_adapter_acts_whatever_the_size_of_the_picture(patched: Any, sample: Callable) -> None:
    model, record = record_of(patched)
    sample(model, size=(16, 16))
    overlay, mask = heat(record)
    assert overlay.shape == PICTURE.shape
    assert mask.shape == (1, 48, 80)
    assert mask.max() == pytest.approx(1, abs=0.05)
    assert mask[..., :40].sum() > 0.9 * mask.sum(), "but for half a cell of the coarsest layer"
    assert torch.equal(heat(record, blending=0.0)[0], PICTURE)
    bright = heat(record, blending=1.0)[0].mean(dim=-1)
    assert bright.flatten()[mask.argmax()] > 0.7
    assert bright[..., -1].max() < 0.1


def test_shares_of_one_scale_add_up_and_an_own_scale_shows_the_weak(
    setting: tuple, patched: Any, apply: Callable, sample: Callable
) -> None:
    model, record = record_of(apply(patched, *setting[1:], strength=0.1, mask=1 - LEFT))
    sample(model)
    whole, strong, weak = (heat(record, adapter=number)[1] for number in (0, 1, 2))
    torch.testing.assert_close(strong + weak, whole)
    assert weak.max() < 0.3
    assert heat(record, adapter=2, scale="own")[1].max() > 0.9


def test_a_record_is_of_the_latest_sampling_and_of_its_own_model(patched: Any, sample: Callable) -> None:
    model, record = record_of(patched)
    later, its_own = record_of(model)
    sample(model, size=(8, 8))
    assert its_own.maps is None
    first = record.maps
    sample(later, size=(16, 16))
    assert record.maps.pick().shape == its_own.maps.pick().shape == (1, 16, 16)
    sample(patched)
    assert record.maps.pick().shape == (1, 16, 16)
    sample(model, size=(8, 8))
    assert torch.equal(record.maps.pick(), first.pick()), "as if nothing had been before"


def test_a_copied_model_has_the_same_record(patched: Any, sample: Callable) -> None:
    model, record = record_of(patched)
    model.model_options = copy.deepcopy(model.model_options)
    sample(model)
    assert record.maps is not None


def test_one_that_was_never_sampled_says_what_to_connect(patched: Any) -> None:
    with pytest.raises(ValueError, match=r"was not sampled .* connect the model of Record IP-Adapter Heat Map to the"):
        heat(record_of(patched)[1])


def test_an_error_or_interrupt_leaves_no_half_record(patched: Any, sample: Callable, monkeypatch: Any) -> None:
    import comfy.model_management

    model, record = record_of(patched)
    sample(model)
    assert record.maps is not None
    step, calls = comfy_host.pack("nodes.patching.run").Step, []
    original = step.add_images

    def broken_off(self: Any, *inputs: Any, **named: Any) -> Tensor:
        calls.append(1)
        if len(calls) > 20:
            raise comfy.model_management.InterruptProcessingException
        return original(self, *inputs, **named)

    monkeypatch.setattr(step, "add_images", broken_off)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model)
    with pytest.raises(ValueError, match=r"it was broken off.* What to do: sample again"):
        heat(record)
    monkeypatch.undo()
    sample(model)
    assert heat(record)[1].max() > 0.9


def test_nothing_of_a_sampling_stays_on_the_model(patched: Any, sample: Callable) -> None:
    model, record = record_of(patched)
    options = model.model_options["transformer_options"]
    before = dict(options)
    sample(model)
    assert options == before
    assert vars(record).keys() == {"maps", "fault"}
    assert all(maps.device.type == "cpu" for maps in record.maps.maps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": 2}, "adapter 2 of a sampling with 1.* from 0, which is all, to 1"),
        ({"reference": 3}, "reference 3 of a sampling with 1"),
        ({"step": 9}, "step 9 of a sampling with 2"),
        ({"image": PICTURE.repeat(3, 1, 1, 1)}, "3 pictures, for the record of 2"),
        ({"record": "this"}, "What to do: connect Record IP-Adapter Heat Map"),
    ],
)
def test_what_there_is_none_of_is_named(patched: Any, sample: Callable, changes: dict[str, Any], message: str) -> None:
    model, record = record_of(patched)
    sample(model, batch=2)
    assert heat(record)[0].shape[0] == 2, "a picture serves all maps"
    with pytest.raises(ValueError, match=message):
        heat(**{"record": record} | changes)


def test_a_model_without_adapters_is_recorded_as_nothing(setting: tuple, sample: Callable) -> None:
    model, record = record_of(setting[0])
    assert torch.equal(sample(model), sample(setting[0]))
    overlay, mask = heat(record, blending=0.0)
    assert not mask.any()
    assert torch.equal(overlay, PICTURE)


def merging(model: Any) -> Any:
    """As packs that have half of the tokens in the attention."""
    clone = model.clone()
    clone.set_model_attn2_patch(lambda q, k, v, _options: (q[:, ::2], k, v))
    clone.set_model_attn2_output_patch(lambda out, _options: out.repeat_interleave(2, dim=1))
    return clone


def hiding(model: Any) -> Any:
    """As packs that show the model a copy of a part of the picture."""
    from comfy.patcher_extension import WrappersMP

    def show_a_part(executor: Callable, x: Tensor, *inputs: Any, **named: Any) -> Tensor:
        return executor(x[..., :4].clone(), *inputs, **named).repeat(1, 1, 1, 2)

    clone = model.clone()
    ours = clone.wrappers[WrappersMP.APPLY_MODEL]
    clone.wrappers[WrappersMP.APPLY_MODEL] = {"tiles": [show_a_part], **ours}  # around ours
    return clone


@pytest.mark.parametrize(
    ("change", "message"),
    [(merging, "merged or split the tokens"), (hiding, "shows the model a part of the picture, and nobody says which")],
)
def test_a_pack_after_which_nobody_knows_where_a_token_lies_is_said(
    setting: tuple, apply: Callable, sample: Callable, change: Callable, message: str
) -> None:
    model, record = record_of(apply(*setting))
    sample(change(model))
    with pytest.raises(ValueError, match=message):
        heat(record)
