"""The LoRA that FaceID files carry beside the adapter: names and pairs of its tensors.

`ip_adapter.{n}.to_{q,k,v,out}_lora.{down,up}.weight`, n counting attention layers in checkpoint order (down, up,
middle), even numbers self-attention, odd ones cross-attention (tencent-ailab/IP-Adapter, attention_processor_faceid.py).
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..errors import UnreadableFileError

_KEY = re.compile(r"ip_adapter\.(\d+)\.to_(q|k|v|out)_lora\.(down|up)\.weight")


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
        number, part, side = key_parts(name)
        other = lora.get(key_name(number, part, "down" if side == "up" else "up"))
        if number >= 2 * num_sites:
            found = f"{name}, though there are only {2 * num_sites} attention layers"
        elif other is None or tensor.ndim != 2 or other.ndim != 2 or not _meet(tensor, other, side):
            found = f"{name} without a partner of the same rank"
        else:
            continue
        raise UnreadableFileError(
            found, expected="LoRA tensors in pairs, down and up", action="download or export the adapter again"
        )


def key_parts(name: str) -> tuple[int, str, str]:
    """Number of the attention layer, projection (q, k, v, out) and side (down, up) of a LoRA's flat name."""
    match = _KEY.fullmatch(name)
    assert match is not None
    return int(match[1]), match[2], match[3]


def key_name(number: int, part: str, side: str) -> str:
    """The flat name with these parts; the inverse of `key_parts`."""
    return f"ip_adapter.{number}.to_{part}_lora.{side}.weight"


def _meet(tensor: Tensor, other: Tensor, side: str) -> bool:
    up, down = (tensor, other) if side == "up" else (other, tensor)
    return up.shape[1] == down.shape[0]
