"""What all frozen models have in common: types of weights, a place to be, and a name for what they hold."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@contextmanager
def brought(module: Any, device: torch.device) -> Iterator[None]:
    """Inside, a frozen module is on the device; one that a cache has sent away goes back afterwards."""
    home = next(module.parameters()).device  # timm's have no device of their own
    if home.type == device.type:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


def fingerprint(module: nn.Module) -> str:
    """A name for a module's weights, from the names, shapes and some values of all of them; the folder does not count."""
    digest = hashlib.blake2b(type(module).__name__.encode(), digest_size=8)
    for name, tensor in module.state_dict().items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 64)].cpu().double()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()
