"""A frozen network whose linear layers are kept in 4 or 8 bits, by bitsandbytes through diffusers."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import BitsAndBytesConfig
from diffusers.quantizers import DiffusersAutoQuantizer
from diffusers.quantizers.bitsandbytes import dequantize_bnb_weight
from torch import Tensor, nn

from ipadapter_core.errors import MismatchError

from ..optimizer import MissingPackageError

_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    # Cosmos' first layer, of Anima, reads frames of rows of cells: bitsandbytes multiplies no more than three axes
    "int8": {"load_in_8bit": True, "llm_int8_skip_modules": ["patch_embed"]},
}
WITHOUT = 'set base.quantization = "none" (--quantization none of `ipadapter sample`)'
"""What to do where it cannot be, for messages."""


def loading_arguments(quantization: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What makes `from_pretrained` of a diffusers model quantise it as it is read.

    Args:
        dtype: of what is not quantised, and of the products.

    Raises:
        MissingPackageError: no bitsandbytes.
        MismatchError: diffusers cannot quantise on this machine.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of bfloat16 in every layer of every step
    try:
        import bitsandbytes  # noqa: F401  # optional, as in optimizer.py
    except ImportError as error:
        raise MissingPackageError(
            f'base.quantization = "{quantization}" without the package bitsandbytes',
            expected="bitsandbytes, which keeps weights in few bits",
            action=f"pip install bitsandbytes, or {WITHOUT}",
        ) from error
    config = BitsAndBytesConfig(**_SETTINGS[quantization], bnb_4bit_compute_dtype=dtype)
    try:
        DiffusersAutoQuantizer.from_config(config).validate_environment()
    except (RuntimeError, ImportError) as error:
        raise MismatchError(
            f'base.quantization = "{quantization}" on this machine ({str(error).rstrip(".")})',
            expected="a GPU, and a bitsandbytes and accelerate that diffusers can use",
            action=f"{WITHOUT}, or do as it says",
        ) from error
    return {"quantization_config": config, "device_map": {"": device}, "torch_dtype": dtype}


def full_weight(linear: nn.Linear) -> Tensor:
    """The weight of a layer as numbers, which quantised ones hold in another form."""
    weight: Tensor = dequantize_bnb_weight(linear.weight, getattr(linear, "state", None))
    return weight
