"""The LoRA that FaceID files carry beside the adapter: where its tensors belong in a model.

`ip_adapter.{n}.to_{q,k,v,out}_lora.{down,up}.weight`, n counting attention layers in checkpoint order (down, up,
middle), even numbers self-attention, odd ones cross-attention (tencent-ailab/IP-Adapter, attention_processor_faceid.py).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..backbone.sites import AttentionSite, UNetSites
from ..errors import MismatchError, UnreadableFileError

_KEY = re.compile(r"ip_adapter\.(\d+)\.to_(q|k|v|out)_lora\.(down|up)\.weight")
_LAYERS = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
_BLOCK = re.compile(r"(input|middle|output)_blocks?\.(?:(\d+)\.)??\d+\.transformer_blocks\.(\d+)")


@dataclass(frozen=True, eq=False)
class LowRank:
    """What is added to one weight (O, I): up (O, R) times down (R, I)."""

    down: Tensor
    up: Tensor


def has_lora(names: Iterable[str]) -> bool:
    """Whether any of these flat names is that of a FaceID LoRA."""
    return any(_KEY.fullmatch(name) for name in names)


def split_lora(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the adapter itself, and those of its LoRA, under their flat names."""
    lora = {name: tensor for name, tensor in tensors.items() if _KEY.fullmatch(name)}
    return {name: tensor for name, tensor in tensors.items() if name not in lora}, lora


def check_lora(lora: Mapping[str, Tensor], num_sites: int) -> None:
    """Make sure that tensors come in pairs that fit, for layers that there are.

    Raises:
        UnreadableFileError: they do not.
    """
    for name, tensor in lora.items():
        number, part, side = _parts(name)
        other = lora.get(_name(number, part, "down" if side == "up" else "up"))
        if number >= 2 * num_sites:
            found = f"{name}, though there are only {2 * num_sites} attention layers"
        elif other is None or tensor.ndim != 2 or other.ndim != 2 or not _meet(tensor, other, side):
            found = f"{name} without a partner of the same rank"
        else:
            continue
        raise UnreadableFileError(
            found, expected="LoRA tensors in pairs, down and up", action="download or export the adapter again"
        )


def lora_weights(lora: Mapping[str, Tensor], diffusion_model: nn.Module, unet: UNetSites) -> dict[str, LowRank]:
    """Where a checked LoRA belongs: changes of weights by their names in the model.

    Args:
        diffusion_model: a UNet in ComfyUI's (CompVis') layout.
        unet: its sites.

    Raises:
        MismatchError: a layer is missing in the model, or has another shape.
    """
    modules = dict(diffusion_model.named_modules())
    blocks = _block_names(modules)
    changes: dict[str, LowRank] = {}
    for name, down in lora.items():
        number, part, side = _parts(name)
        if side == "up":
            continue
        site = unet.sites[number // 2] if number // 2 < len(unet.sites) else None
        block = blocks.get(_address(site)) if site else None
        layer = f"{block}.attn{number % 2 + 1}.{_LAYERS[part]}"
        change = LowRank(down, lora[_name(number, part, "up")])
        weight = getattr(modules.get(layer), "weight", None)
        if block is None or weight is None or tuple(weight.shape) != (len(change.up), down.shape[1]):
            raise MismatchError(
                f"{name} of shape {list(down.shape)}, for which this model has no layer",
                expected="a LoRA and a model of the same base",
                action="load the model the adapter was made for",
            )
        changes[f"{layer}.weight"] = change
    return changes


def _parts(name: str) -> tuple[int, str, str]:
    match = _KEY.fullmatch(name)
    assert match is not None
    return int(match[1]), match[2], match[3]


def _name(number: int, part: str, side: str) -> str:
    return f"ip_adapter.{number}.to_{part}_lora.{side}.weight"


def _meet(tensor: Tensor, other: Tensor, side: str) -> bool:
    up, down = (tensor, other) if side == "up" else (other, tensor)
    return up.shape[1] == down.shape[0]


def _address(site: AttentionSite) -> tuple[str, int, int]:
    return site.block, site.block_id, site.depth_index


def _block_names(modules: Iterable[str]) -> dict[tuple[str, int, int], str]:
    """Name of each transformer block by the address of its site."""
    matches = [match for name in modules if (match := _BLOCK.fullmatch(name))]
    return {(match[1], int(match[2] or 0), int(match[3])): match[0] for match in matches}
