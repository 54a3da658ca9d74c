"""What FSDP and DeepSpeed, which give each process a part of the trained weights, cannot do, and what they are told."""

from typing import Any

from accelerate.utils import DistributedType

from ipadapter_core.errors import MismatchError

from .config import Config

# Adafactor and Prodigy look at whole matrices, bitsandbytes does not know FSDP's tensors.
OPTIMIZERS = {
    DistributedType.FSDP: frozenset({"adamw"}),
    DistributedType.DEEPSPEED: frozenset({"adamw", "adamw8bit"}),
}
SHARDED = tuple(OPTIMIZERS)


def check_sharding(kind: DistributedType, config: Config, *, is_fsdp2: bool) -> None:
    """Raises MismatchError for settings that would fail, or train something else, with weights in parts."""
    if kind not in SHARDED:
        return
    if kind is DistributedType.FSDP and not is_fsdp2:
        raise MismatchError(
            "FSDP of version 1, accelerate's default",
            expected="version 2, which keeps the names and types of the weights",
            action="set fsdp_version: 2, or launch with trainer/configs/accelerate/fsdp_sdxl.yaml",
        )
    launched = f"with {kind.value}, which gives each process a part of the weights"
    if config.adapter.gate == "block":
        raise MismatchError(
            f'adapter.gate = "block" with {kind.value}, which cannot divide single numbers',
            expected="the whole weights in every process, as DDP has them",
            action='launch without FSDP and DeepSpeed, or set adapter.gate = "none" or "time"',
        )
    if config.optimizer.ema_decay is not None:
        raise MismatchError(
            f"optimizer.ema_decay {launched}",
            expected="the whole weights in every process, as DDP has them",
            action="remove optimizer.ema_decay, or launch without FSDP and DeepSpeed",
        )
    if config.optimizer.name not in OPTIMIZERS[kind]:
        raise MismatchError(
            f'optimizer.name = "{config.optimizer.name}" {launched}',
            expected=f"one that treats every number by itself: {', '.join(sorted(OPTIMIZERS[kind]))}",
            action='set optimizer.name = "adamw", or launch without FSDP and DeepSpeed',
        )
    if config.base.precision == "fp16":
        raise MismatchError(
            f'base.precision = "fp16" with {kind.value}, which then computes the adapter in float16 too',
            expected="an adapter that computes in float32: a resampler leaves float16's range",
            action='set base.precision = "bf16", or launch without FSDP and DeepSpeed',
        )


def configure_deepspeed(plugin: Any, config: Config) -> None:
    """Tell DeepSpeed what it would read off a DataLoader, which accelerate does not have here, and how to clip."""
    plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.train.batch_size
    plugin.deepspeed_config["gradient_clipping"] = config.optimizer.clip_norm or 0.0
