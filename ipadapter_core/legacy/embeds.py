"""Embeds: encoder features of references before any projection, as EMBEDS sockets and `.ipadpt` files hold them."""

# R references, E feature width, S positions

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..branch.tokens import COMBINATIONS
from ..errors import BadInputError, MismatchError, UnreadableFileError, one_of
from ..file.container import (
    SAFETENSORS_SUFFIXES,
    file_status,
    read_header,
    read_pickle,
    read_tensors,
    write_aside,
    write_safetensors,
)

KEY = "embeds"  # the one tensor of a safetensors file of embeds
PICKLE_SUFFIX = ".ipadpt"  # a pickled bare tensor, as IPAdapter_plus saved it
SUFFIXES = (PICKLE_SUFFIX, *SAFETENSORS_SUFFIXES)
FILE_KIND = "embeds"  # in messages
CONCAT = "concat"  # the combination that keeps every reference
_RANKS = (2, 3)
FILE_RANKS = (2, 3, 4)  # before March 2024 both sides lay behind each other: (2, R, E) or (2, R, S, E)


def _norm_average(embeds: Tensor) -> Tensor:
    """Each number is divided by its length over the references, not over the vector."""
    lengths: Tensor = torch.linalg.vector_norm(embeds, dim=0, keepdim=True)
    return (embeds / torch.where(lengths == 0, 1, lengths)).mean(dim=0, keepdim=True)


EMBEDS_COMBINATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: COMBINATIONS[name].reduce for name in (CONCAT, "add", "subtract", "average")},
    "norm average": _norm_average,
    **{name: COMBINATIONS[name].reduce for name in ("max", "min")},
}


def combine_embeds(embeds: Tensor, method: str) -> Tensor:
    """Combine the embeds of several references, (R, E) or (R, S, E), into one (1, …); `CONCAT` keeps them all.

    Raises:
        BadInputError: a method that is no key of `EMBEDS_COMBINATIONS`.
    """
    return one_of(method, EMBEDS_COMBINATIONS, "combination method")(embeds)


def combine_sides(positive: Tensor, negative: Tensor, method: str) -> tuple[Tensor, Tensor]:
    """References combined into one, of several negatives the first; `CONCAT` keeps all of both.

    Raises:
        BadInputError: as `combine_embeds`.
    """
    if method == CONCAT or len(positive) == 1:
        return positive, negative
    return combine_embeds(positive, method), negative[:1]


def concat_embeds(parts: Sequence[Tensor]) -> Tensor:
    """Embeds of several encoders runs behind one another.

    Raises:
        MismatchError: embeds of different shapes.
    """
    if len({part.shape[1:] for part in parts}) > 1:
        raise MismatchError(
            f"embeds of shapes {', '.join(str(list(part.shape)) for part in parts)}",
            expected="embeds made with one kind of adapter and one image encoder",
            action="encode every reference with the adapter they are used with",
        )
    return torch.cat([part.to(parts[0]) for part in parts])


def save_embeds(path: Path, embeds: Tensor) -> None:
    """Write embeds as safetensors; `read_embeds` reads them back."""
    write_aside(path, lambda part: write_safetensors(part, {KEY: check_embeds(embeds, FILE_RANKS)}, {}))


def read_embeds(path: Path) -> Tensor:
    """Embeds of a file, on the CPU. No code of the file runs.

    Raises:
        UnreadableFileError: damaged, a pickle of something else than a tensor, or no embeds.
    """
    if path.suffix in SAFETENSORS_SUFFIXES:
        content: object = read_tensors(path, FILE_KIND).tensors.get(KEY)
    else:
        content = read_pickle(path, FILE_KIND)
    if not isinstance(content, Tensor) or content.ndim not in FILE_RANKS or not content.is_floating_point():
        what = f"a tensor of shape {list(content.shape)}" if isinstance(content, Tensor) else "something else"
        raise UnreadableFileError(
            f"{path.name} holds {what} where embeds were looked for",
            expected="one tensor of shape [references, width] or [references, positions, width]",
            action="choose a file that embeds were saved to",
        )
    return content.clone()  # the file may be replaced while they are in use


def holds_embeds(path: Path) -> bool:
    """Whether a file is one of embeds, as far as its name or its header tells; what cannot be read is none."""
    try:
        if path.suffix == PICKLE_SUFFIX:
            file_status(path, FILE_KIND)
            return True
        return path.suffix in SAFETENSORS_SUFFIXES and set(read_header(path, FILE_KIND)) - {"__metadata__"} == {KEY}
    except UnreadableFileError:
        return False


def check_embeds(embeds: object, ranks: Sequence[int] = _RANKS) -> Tensor:
    """What came through an EMBEDS socket.

    Raises:
        BadInputError: no tensor of one of the ranks.
    """
    if not isinstance(embeds, Tensor) or embeds.ndim not in ranks:
        raise BadInputError(
            describe_embeds(embeds),
            expected="a tensor of shape [references, width] or [references, positions, width]",
            action="connect embeds of one side, as they are encoded since March 2024",
        )
    return embeds


def describe_embeds(embeds: object) -> str:
    """What came through an EMBEDS socket, in a message."""
    return f"EMBEDS that are {list(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__}"
