"""XLabs' FLUX adapters: what its trainers and diffusers make of them, to the layout XLabs publishes.

Published: `ip_adapter_proj_model.*` and `double_blocks.N.processor.ip_adapter_double_stream_{k,v}_proj.*`, with biases.
Training code is not public; its re-implementations save `image_proj.*` and `ip_adapter.N.ip_adapter_double_stream_…`
(CONSTANT1386/x-flux-ip-adapter), diffusers' script writes `image_proj.*` and `ip_adapter.N.to_k_ip.*`.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from .errors import ConvertError

_NUM_DOUBLE_BLOCKS = 19
_STREAM = "ip_adapter_double_stream"
_PROJECTION = re.compile(r"(?:image_proj|image_proj_model|ip_adapter_proj_model)\.(.+)")
_IN_BLOCK = re.compile(rf"(?:.+\.)?double_blocks\.(\d+)\.(?:processor\.)?{_STREAM}_([kv])_proj\.(weight|bias)")
_NUMBERED = re.compile(rf"(?:ip_adapter|adapter_modules)\.(\d+)\.(?:{_STREAM}_([kv])_proj|to_([kv])_ip)\.(weight|bias)")
_BIAS = re.compile(r"ip_adapter\.\d+\.to_k_ip\.bias")  # of the families, only XLabs' has one
_FROZEN = re.compile(r"(?:transformer|dit|model)\..+|(?:.+\.)?(?:double|single)_blocks\.\d+\.(?!processor\.).+")


def is_xlabs(tensors: Mapping[str, Tensor]) -> bool:
    return any(_STREAM in name or _BIAS.fullmatch(name) for name in tensors)


def published_xlabs(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An XLabs adapter under the names XLabs publishes.

    Raises:
        ConvertError: something is missing or superfluous, or it is not told which blocks the tensors belong to.
    """
    projection: dict[str, Tensor] = {}
    placed: dict[tuple[int, str, str], Tensor] = {}
    numbered: dict[tuple[int, str, str], Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        if match := _PROJECTION.fullmatch(name):
            projection[match[1]] = tensor
        elif match := _IN_BLOCK.fullmatch(name):
            placed[int(match[1]), match[2], match[3]] = tensor
        elif match := _NUMBERED.fullmatch(name):
            numbered[int(match[1]), match[2] or match[3], match[4]] = tensor
        elif not _FROZEN.fullmatch(name):
            unknown.append(name)
    blocks = placed or numbered
    if not placed and {number for number, _, _ in numbered} != set(range(_NUM_DOUBLE_BLOCKS)):
        raise ConvertError(
            f"an XLabs adapter on {len({number for number, _, _ in numbered})} blocks that are only counted",
            expected=f"all {_NUM_DOUBLE_BLOCKS} double blocks, or tensors named by their block",
            action="convert the training state that still has the transformer's names",
        )
    wanted = {(block, kv, kind) for block, _, _ in blocks for kv in "kv" for kind in ("weight", "bias")}
    missing = [f"{kind} of {kv} in block {block}" for block, kv, kind in sorted(wanted - blocks.keys())]
    missing += [f"{name} of the projection" for name in _projection_names() if name not in projection]
    if missing or unknown or len(projection) != len(_projection_names()):
        raise ConvertError(
            f"an XLabs adapter with {'; '.join([*(f'{name} missing' for name in missing), *unknown][:4]) or 'more in it'}",
            expected="a projection (proj, norm), and K and V with bias for each block",
            action="convert the complete training state",
        )
    published = {f"ip_adapter_proj_model.{name}": projection[name] for name in _projection_names()}
    for block, kv, kind in sorted(blocks):
        published[f"double_blocks.{block}.processor.{_STREAM}_{kv}_proj.{kind}"] = blocks[block, kv, kind]
    return published


def _projection_names() -> tuple[str, ...]:
    return tuple(f"{part}.{kind}" for part in ("proj", "norm") for kind in ("weight", "bias"))
