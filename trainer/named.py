"""Named tensors: what a reader gives for references, and a model for texts."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Named = Mapping[str, Tensor]


def each(named: Named, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """All of them changed."""
    return {name: change(tensor) for name, tensor in named.items()}


def joined(parts: Sequence[Named]) -> dict[str, Tensor]:
    """Parts of the same names, behind each other in their first dimension."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def stacked(parts: Sequence[Named]) -> dict[str, Tensor]:
    """Parts of the same names, as rows of a new first dimension."""
    return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
