"""The LoRA that an adapter's file carries for the model it is for, by the names of PEFT: on whenever the adapter is.

`lora.base_model.model.{layer}.lora_{A,B}[.default].weight`, without an alpha: it equals the rank (LuciferTC's adapters).
"""

import re
from collections.abc import Mapping

from torch import Tensor

from ..errors import UnreadableFileError

_KEY = re.compile(r"lora\.base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_SIDES = {"A": "down", "B": "up"}


def split_model_lora(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the adapter itself, and those of this LoRA, under their flat names."""
    lora = {name: tensor for name, tensor in tensors.items() if _KEY.fullmatch(name)}
    return {name: tensor for name, tensor in tensors.items() if name not in lora}, lora


def lora_layers(lora: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """By the name of a layer in the model, `down` (R, I) and `up` (O, R), whose product is added to its weight."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in lora.items():
        match = _KEY.fullmatch(name)
        assert match is not None
        layers.setdefault(match[1], {})[_SIDES[match[2]]] = tensor
    return layers


def check_model_lora(lora: Mapping[str, Tensor]) -> None:
    """Make sure that tensors come in pairs that fit.

    Raises:
        UnreadableFileError: they do not.
    """
    for layer, pair in lora_layers(lora).items():
        shapes = [tuple(pair[side].shape) for side in ("up", "down") if side in pair]
        if len(shapes) != 2 or {len(shape) for shape in shapes} != {2} or shapes[0][1] != shapes[1][0]:
            raise UnreadableFileError(
                f"LoRA tensors of {layer} of shape {', '.join(map(str, map(list, shapes)))}",
                expected="two of the same rank for each layer, lora_A and lora_B",
                action="download or export the adapter again",
            )
