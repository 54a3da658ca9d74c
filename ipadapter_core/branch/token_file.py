"""Image tokens in a safetensors file: small enough to share, for one adapter and of no use to another."""

import json
from pathlib import Path

import torch
from torch import Tensor

from ..errors import MismatchError, UnreadableFileError, shown
from ..file.container import read_header, read_tensors, write_aside, write_safetensors
from ..file.header import METADATA
from ..file.json_text import parse_json
from ..file.spec import AdapterSpec
from .tokens import ImageTokens, Mix

FILE_KIND = "image tokens"  # in messages
SUFFIX = ".safetensors"
_ABOUT = "ipadapter.tokens"  # in the metadata: JSON with the two names below
_ORIGIN, _FAMILY = "adapter", "family"
_SIDES = ("cond", "uncond")
_MIXES = ("mix.cond", "mix.uncond")
_RANK, _MIX_RANK = 3, 2


def save_tokens(path: Path, tokens: ImageTokens, origin: str, family: str) -> None:
    """Write tokens; `read_tokens` gives equal ones back.

    Args:
        origin: of their adapter; see `origin_of`.
        family: of the adapter, for messages.
    """
    tensors: dict[str, Tensor] = dict(zip(_SIDES, (tokens.cond, tokens.uncond), strict=True))
    if tokens.mix is not None:
        mixes = (torch.tensor(side, dtype=torch.float64) for side in (tokens.mix.cond, tokens.mix.uncond))
        tensors |= dict(zip(_MIXES, mixes, strict=True))
    about = {_ABOUT: json.dumps({_ORIGIN: origin, _FAMILY: family})}
    write_aside(path, lambda part: write_safetensors(part, tensors, about))


def read_tokens(path: Path, spec: AdapterSpec, origin: str, adapter_id: str) -> ImageTokens:
    """Tokens of a file, on the CPU.

    Args:
        spec, origin: of the adapter they are to be used with.
        adapter_id: the tokens are to have.

    Raises:
        UnreadableFileError: damaged, or a file of something else.
        MismatchError: tokens of another adapter.
    """
    file = read_tensors(path, FILE_KIND)
    about = _about(file.metadata.get(_ABOUT))
    if about is None:
        raise UnreadableFileError(
            f"{path.name}, which holds no image tokens",
            expected="a file that image tokens were saved to",
            action="choose another file",
        )
    if about[_ORIGIN] != origin:
        raise MismatchError(
            f"{path.name}, tokens for another adapter ({shown(about[_FAMILY])})",
            expected=f"tokens made with the adapter that is loaded, {spec.family}",
            action="load the adapter they were made with, or encode the picture again with this one",
        )
    width = spec.image_dim if spec.is_timed else spec.token_dim
    cond, uncond = (_checked(path, file.tensors.get(name), _RANK, width) for name in _SIDES)
    if cond.shape[1:] != uncond.shape[1:]:
        raise _damaged(path, f"sides of {list(cond.shape)} and {list(uncond.shape)}")
    if spec.is_timed != any(name in file.tensors for name in _MIXES):
        raise _damaged(path, f"{'no' if spec.is_timed else 'a'} combination of references")
    if not spec.is_timed:
        return ImageTokens(cond, uncond, adapter_id)
    widths = zip(_MIXES, (len(cond), len(uncond)), strict=True)
    sides = [_checked(path, file.tensors.get(name), _MIX_RANK, count) for name, count in widths]
    if not all(side.isfinite().all() for side in sides):
        raise _damaged(path, "a combination of references that is not finite")
    return ImageTokens(cond, uncond, adapter_id, Mix(*(tuple(map(tuple, side.tolist())) for side in sides)))


def holds_tokens(path: Path) -> bool:
    """Whether a file is one of tokens, as far as its header tells; what cannot be read is none."""
    try:
        return path.suffix == SUFFIX and _ABOUT in read_header(path, FILE_KIND).get(METADATA, {})
    except UnreadableFileError:
        return False


def _about(text: str | None) -> dict[str, str] | None:
    try:
        about = parse_json(text or "null")
    except ValueError:
        return None
    if not isinstance(about, dict) or not all(isinstance(about.get(name), str) for name in (_ORIGIN, _FAMILY)):
        return None
    return about


def _checked(path: Path, tensor: Tensor | None, rank: int, width: int) -> Tensor:
    if tensor is None or tensor.ndim != rank or 0 in tensor.shape or tensor.shape[-1] != width:
        found = "a tensor missing" if tensor is None else f"a tensor of shape {list(tensor.shape)}"
        raise _damaged(path, found)
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise _damaged(path, f"a tensor of type {tensor.dtype}")
    return tensor.clone()  # the file may be replaced while they are in use


def _damaged(path: Path, found: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path.name} with {found}",
        expected="image tokens as they are saved",
        action="take another copy of the file, or encode the picture again",
    )
