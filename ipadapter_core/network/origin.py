"""Which adapter image tokens belong to, told by its weights and not by where its file lies."""

import hashlib

import torch
from torch import Tensor

from .adapter import IPAdapter

_SHARED = ("image_proj.", "shared.")


def origin_of(adapter: IPAdapter) -> str:
    """The same for the same weights, whatever file and floating-point type hold them.

    What makes tokens is read whole, and of what reads them the first and the last layer: two adapters that agree so far
    and differ between them are not told apart.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in adapter.state_dict().items():
        if name.startswith((*_SHARED, *_ends(adapter))):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _ends(adapter: IPAdapter) -> tuple[str, ...]:
    keys = list(adapter.ip_adapter)
    return tuple(f"ip_adapter.{key}." for key in (keys[0], keys[-1]))


def _bytes(tensor: Tensor) -> memoryview:
    plain = tensor.detach().to("cpu", torch.float32).contiguous()
    view: memoryview = plain.view(-1).view(torch.uint8).numpy().data
    return view
