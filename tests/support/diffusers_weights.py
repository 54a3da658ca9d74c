"""Weights of a diffusers model under the names of ComfyUI's class of the same model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def load_into(model: nn.Module, weights: Mapping[str, Tensor], names: Mapping[str, Any]) -> None:
    """Load all weights of a model.

    Args:
        weights: under diffusers' names.
        names: as ComfyUI's `…_to_diffusers`: a name, or one with the place in a larger weight and a function of it.
    """
    wanted = model.state_dict()
    made: dict[str, Tensor] = {}
    for name, given in weights.items():
        target, *how = (names[name],) if isinstance(names[name], str) else names[name]
        older = target.replace("_norm.weight", "_norm.scale")  # as older versions call it
        target = older if older in wanted else target
        tensor = how[1](given) if len(how) > 1 else given
        if how and how[0] is not None:
            dim, start, size = how[0]
            made.setdefault(target, torch.zeros(wanted[target].shape)).narrow(dim, start, size).copy_(tensor)
        else:
            made[target] = tensor
    model.load_state_dict(made, strict=True)
