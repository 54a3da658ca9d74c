"""Optimisers get every setting and the adapter's parameters alone."""

import sys
from typing import Any

import prodigyopt
import pytest
import torch
import transformers
from torch import nn

from ipadapter_trainer.config import OptimizerConfig
from ipadapter_trainer.optimizer import MissingPackageError, build_ema, build_optimizer, build_schedule

CLASSES = {
    "adamw": torch.optim.AdamW,
    "prodigy": prodigyopt.Prodigy,
    "adafactor": transformers.optimization.Adafactor,
}
DISTINCT = {"learning_rate": 0.011, "weight_decay": 0.022, "betas": (0.7, 0.8)}


def settings(**values: Any) -> OptimizerConfig:
    return OptimizerConfig(**{**DISTINCT, **values})


@pytest.mark.parametrize("name", CLASSES)
def test_every_setting_arrives(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parameters = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3))]
    optimizer = build_optimizer(iter(parameters), settings(name=name))
    assert type(optimizer) is CLASSES[name]
    (group,) = optimizer.param_groups
    assert [id(one) for one in group["params"]] == [id(one) for one in parameters]
    assert (group["lr"], group["weight_decay"]) == (0.011, 0.022)
    if name != "adafactor":  # which has no betas
        assert group["betas"] == (0.7, 0.8)
    if name == "adamw":
        assert group["fused"]
    assert capsys.readouterr().out == "", "standard output is for a command's result"


def test_adafactor_keeps_its_learning_rate() -> None:
    optimizer = build_optimizer([nn.Parameter(torch.randn(4, 3))], settings(name="adafactor"))
    assert not optimizer.param_groups[0]["relative_step"]
    assert not optimizer.param_groups[0]["scale_parameter"]


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingPackageError, match=r"pip install bitsandbytes, or set optimizer.name to adamw"):
        build_optimizer([nn.Parameter(torch.randn(2))], settings(name="adamw8bit"))


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [0, 0.5, 1, 1, 1, 1, 1]),
        ("linear", [0, 0.5, 1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [0, 0.5, 1, 0.853553, 0.5, 0.146447, 0]),
    ],
)
def test_rate_warms_up_and_falls(schedule: str, factors: list[float]) -> None:
    config = settings(schedule=schedule, warmup_steps=2)
    optimizer = build_optimizer([nn.Parameter(torch.zeros(1))], config)
    rates = build_schedule(optimizer, config, steps=6)
    seen = []
    for _ in factors:
        seen.append(rates.get_last_lr()[0] / 0.011)
        optimizer.step()
        rates.step()
    assert seen == pytest.approx(factors, abs=1e-6)


def test_average_follows_every_parameter() -> None:
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2, 2))]
    ema = build_ema(iter(parameters), settings(ema_decay=0.9))
    assert ema is not None
    for _ in range(200):
        with torch.no_grad():
            for one in parameters:
                one += 1
        ema.step(parameters)
    for shadow, one in zip(ema.shadow_params, parameters, strict=True):
        assert shadow.shape == one.shape
        assert torch.allclose(one - shadow, torch.full_like(one, 9.0), atol=1.0)  # decay / (1 - decay) steps behind
    assert build_ema(iter(parameters), settings()) is None
