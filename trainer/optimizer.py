"""Optimiser, learning-rate schedule and moving average of the trained weights, all by their libraries."""

import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from typing import Any

import torch
import transformers
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn

from ipadapter_core.errors import IPAdapterError

from .config import OptimizerConfig

Parameters = Iterable[nn.Parameter]


class MissingPackageError(IPAdapterError):
    """A config asks for a package that is not installed."""


def _adamw(parameters: Parameters, config: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def _adamw8bit(parameters: Parameters, config: OptimizerConfig) -> torch.optim.Optimizer:
    try:
        import bitsandbytes  # optional: large, and of use on a GPU only
    except ImportError as error:
        raise MissingPackageError(
            'optimizer.name = "adamw8bit" without the package bitsandbytes',
            expected="bitsandbytes, which holds the 8-bit Adam",
            action="pip install bitsandbytes, or set optimizer.name to adamw or adafactor",
        ) from error
    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
        parameters, config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    return optimizer


def _prodigy(parameters: Parameters, config: OptimizerConfig) -> torch.optim.Optimizer:
    import prodigyopt

    with redirect_stdout(sys.stderr):  # it prints; standard output is for results
        optimizer: torch.optim.Optimizer = prodigyopt.Prodigy(
            parameters,
            config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            use_bias_correction=True,
            safeguard_warmup=True,
        )
    return optimizer


def _adafactor(parameters: Parameters, config: OptimizerConfig) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = transformers.optimization.Adafactor(
        parameters,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        scale_parameter=False,
        relative_step=False,
    )
    return optimizer


OPTIMIZERS: dict[str, Callable[[Parameters, OptimizerConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "prodigy": _prodigy,
    "adafactor": _adafactor,
}


def build_optimizer(parameters: Parameters, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser a config names, over these parameters and no others.

    Raises:
        MissingPackageError: its package is not installed.
    """
    return OPTIMIZERS[config.name](parameters, config)


def build_schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig, steps: int) -> Any:
    """Learning rate by optimiser step: warm-up, then the schedule down to the last of `steps`."""
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    return get_scheduler(name, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=steps)


def build_ema(parameters: Parameters, config: OptimizerConfig) -> EMAModel | None:
    """The moving average over all trained weights; None where the config asks for none."""
    if config.ema_decay is None:
        return None
    return EMAModel(list(parameters), decay=config.ema_decay, use_ema_warmup=True, power=3 / 4, foreach=True)
