"""The layer classes a module is built from: torch's own, or ComfyUI's that cast their weights when used."""

from typing import Protocol

from torch import nn


class Operations(Protocol):
    """What `torch.nn` and `comfy.ops.manual_cast` have in common."""

    Linear: type[nn.Linear]
    LayerNorm: type[nn.LayerNorm]
    Embedding: type[nn.Embedding]


TORCH: Operations = nn
