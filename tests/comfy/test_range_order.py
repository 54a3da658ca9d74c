"""Start and end are resolved with the schedule that is sampled, whatever the order of nodes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support import comfy_host

STEPS = 10


def discrete(model: Any, sampling: str, zsnr: bool) -> Any:
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return ModelSamplingDiscrete().patch(model, sampling, zsnr)[0]


def continuous_edm(model: Any, sampling: str) -> Any:
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM

    return ModelSamplingContinuousEDM().patch(model, sampling, 120.0, 0.002)[0]


def continuous_v(model: Any) -> Any:
    from comfy_extras.nodes_model_advanced import ModelSamplingContinuousV

    return ModelSamplingContinuousV().patch(model, "v_prediction", 500.0, 0.03)[0]


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "v prediction": lambda model: discrete(model, "v_prediction", zsnr=False),
    "zsnr": lambda model: discrete(model, "v_prediction", zsnr=True),
    "lcm": lambda model: discrete(model, "lcm", zsnr=False),
    "edm": lambda model: continuous_edm(model, "edm"),
    "continuous v": continuous_v,
}


@pytest.mark.parametrize(
    ("schedule", "layout"),
    [
        *((schedule, "sdxl") for schedule in SCHEDULES),
        *(pytest.param(schedule, "sd15", marks=pytest.mark.long) for schedule in SCHEDULES),
    ],
)
def test_the_order_of_nodes_does_not_matter(
    schedule: str,
    layout: str,
    model: Callable,
    make_adapter: Callable,
    make_tokens: Callable,
    apply: Callable,
    sample: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = make_adapter("base", layout)
    tokens = make_tokens(adapter)
    use = {"start_percent": 0.2, "end_percent": 0.8}
    acting = acting_steps(monkeypatch)
    before = sample(apply(SCHEDULES[schedule](model(layout)), adapter, tokens, **use), steps=STEPS)
    steps_before = acting.copy()
    acting.clear()
    behind = sample(SCHEDULES[schedule](apply(model(layout), adapter, tokens, **use)), steps=STEPS)
    assert torch.equal(before, behind)
    assert acting == steps_before
    assert 0 < sum(acting) < len(acting) == STEPS


def acting_steps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the adapter acted, for every call of the model that follows."""
    run, seen = comfy_host.pack("nodes.patching.run"), []
    original, decided = run.add_image_attention, []

    def add(out: Tensor, image: Tensor, mask: Tensor | None, gate: Tensor, **more: Any) -> Tensor:
        if not decided or decided[-1] is not gate:  # one gate a call of the model
            decided.append(gate)
            seen.append(bool(gate))
        return original(out, image, mask, gate, **more)

    monkeypatch.setattr(run, "add_image_attention", add)
    return seen
