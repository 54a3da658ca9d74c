"""Launches that split the trained weights: what cannot be trained so is refused, and DeepSpeed is told what the config says."""

from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import DeepSpeedPlugin, DistributedType

from ipadapter_core.errors import MismatchError
from ipadapter_trainer.config import Config
from ipadapter_trainer.sharding import check_sharding, configure_deepspeed
from support.training import make_config

FSDP, DEEPSPEED = DistributedType.FSDP, DistributedType.DEEPSPEED


def config(**changes: dict[str, Any]) -> Config:
    return make_config(Path("base"), Path("encoder"), Path("data"), Path("run"), **changes)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (FSDP, {"optimizer": {"ema_decay": 0.9}}, "optimizer.ema_decay with FSDP.*remove optimizer.ema_decay"),
        (DEEPSPEED, {"optimizer": {"ema_decay": 0.9}}, "optimizer.ema_decay with DEEPSPEED"),
        (FSDP, {"optimizer": {"name": "adafactor"}}, '"adafactor" with FSDP.*adamw'),
        (FSDP, {"optimizer": {"name": "adamw8bit"}}, '"adamw8bit" with FSDP.*adamw'),
        (DEEPSPEED, {"optimizer": {"name": "prodigy"}}, '"prodigy" with DEEPSPEED.*adamw, adamw8bit'),
        (FSDP, {"adapter": {"kind": "plus", "gate": "block"}}, '"block" with FSDP.*launch without FSDP'),
        (DEEPSPEED, {"adapter": {"kind": "plus", "gate": "block"}}, '"block" with DEEPSPEED.*launch without FSDP'),
        (DEEPSPEED, {"base": {"precision": "fp16"}}, '"fp16" with DEEPSPEED.*"bf16"'),
    ],
)
def test_what_needs_whole_weights_is_refused(kind: Any, changes: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(MismatchError, match=message):
        check_sharding(kind, config(**changes), is_fsdp2=True)
    check_sharding(DistributedType.MULTI_GPU, config(**changes), is_fsdp2=False)


def test_first_fsdp_is_refused() -> None:
    check_sharding(FSDP, config(), is_fsdp2=True)
    with pytest.raises(MismatchError, match="fsdp_version: 2"):
        check_sharding(FSDP, config(), is_fsdp2=False)


@pytest.mark.parametrize(("clip_norm", "told"), [(0.5, 0.5), (None, 0.0)])
def test_deepspeed_clips_and_counts_as_the_config_says(clip_norm: float | None, told: float) -> None:
    plugin = DeepSpeedPlugin()
    configure_deepspeed(plugin, config(optimizer={"clip_norm": clip_norm}, train={"batch_size": 3, "steps": 1}))
    assert plugin.deepspeed_config["gradient_clipping"] == told
    assert plugin.deepspeed_config["train_micro_batch_size_per_gpu"] == 3
