"""Weights at one byte a number: float8 (e4m3) with a scale for each output channel, as the base model is shipped."""

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0  # of float8_e4m3fn
SCALE = ".scale"


def pack(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and convolutions to float8 and a float16 scale (O,); vectors, which are few, to float16."""
    packed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            packed[name] = tensor.half().contiguous()
        else:
            scale = (tensor.flatten(1).abs().amax(1) / LARGEST).clamp(min=1e-7).half()
            packed[name] = (tensor / _along(scale, tensor)).clamp(-LARGEST, LARGEST).to(FLOAT8).contiguous()
            packed[name + SCALE] = scale
    return packed


def unpack(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `pack` made, as float16."""
    return {
        name: (tensor.float() * _along(packed[name + SCALE], tensor)).half() if tensor.dtype == FLOAT8 else tensor
        for name, tensor in packed.items()
        if not name.endswith(SCALE)
    }


def _along(scale: Tensor, tensor: Tensor) -> Tensor:
    return scale.float().reshape(-1, *[1] * (tensor.ndim - 1))
