"""Where the tensors of a FaceID LoRA belong in a UNet."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import MismatchError
from ..face.lora_file import key_name, key_parts
from .sites import Address, Sites

_LAYERS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
_BLOCK = re.compile(r"(input|middle|output)_blocks?\.(?:(\d+)\.)??\d+\.transformer_blocks\.(\d+)")


@dataclass(frozen=True, eq=False)
class LowRank:
    """What is added to one weight (O, I): up (O, R) times down (R, I)."""

    down: Tensor
    up: Tensor


def lora_weights(lora: Mapping[str, Tensor], diffusion_model: nn.Module, sites: Sites) -> dict[str, LowRank]:
    """Where a checked LoRA belongs: changes of weights by their names in the model.

    Args:
        diffusion_model: a UNet in ComfyUI's (CompVis') layout.
        sites: its sites.

    Raises:
        MismatchError: a layer is missing in the model, or has another shape.
    """
    modules = dict(diffusion_model.named_modules())
    blocks = _block_names(modules)
    changes: dict[str, LowRank] = {}
    for name, down in lora.items():
        number, part, side = key_parts(name)
        if side == "up":
            continue
        site = sites.sites[number // 2] if number // 2 < len(sites.sites) else None
        block = blocks.get(site.address) if site else None
        layer = f"{block}.attn{number % 2 + 1}.{_LAYERS[part]}"
        change = LowRank(down, lora[key_name(number, part, "up")])
        weight = getattr(modules.get(layer), "weight", None)
        if block is None or weight is None or tuple(weight.shape) != (len(change.up), down.shape[1]):
            raise MismatchError(
                f"{name} of shape {list(down.shape)}, for which this model has no layer",
                expected="a LoRA and a model of the same base",
                action="load the model the adapter was made for",
            )
        changes[f"{layer}.weight"] = change
    return changes


def _block_names(modules: Iterable[str]) -> dict[Address, str]:
    """Name of each transformer block by the address of its site."""
    matches = [match for name in modules if (match := _BLOCK.fullmatch(name))]
    return {(match[1], int(match[2] or 0), int(match[3])): match[0] for match in matches}
