"""Which of the adapter files at hand a preset means: by what their tensors are, by name only where those are the same."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import MismatchError
from ..file.published import way_to
from ..file.spec import AdapterSpec, Projection

_ENDING = r"\.(bin|pt|pth|ckpt|safetensors|sft)$"


@dataclass(frozen=True)
class Wanted:
    """A kind of adapter.

    Attributes:
        projection, image_dim: what its tensors are; see `AdapterSpec`.
        names: patterns of the names it is published under, the best first; matched without regard to case, as the end
            of the name.
        example: the published file, for the message.
        num_tokens: how many it makes of a reference, where that tells kinds apart; None is any number.
    """

    projection: Projection
    image_dim: int
    names: tuple[str, ...]
    example: str
    num_tokens: int | None = None

    def is_kind_of(self, spec: AdapterSpec) -> bool:
        fits = (self.projection, self.image_dim) == (spec.projection, spec.image_dim)
        return fits and self.num_tokens in (None, spec.num_tokens)

    def is_name_of(self, name: str) -> bool:
        return any(_matches(pattern, name) for pattern in self.names)


def choose_adapter(
    wanted: Wanted, fitting: Mapping[str, AdapterSpec], known: Iterable[Wanted], *, preset: str, found: str, folder: str
) -> str:
    """The file that a preset means.

    A file of another name is taken if it is the only one left when those that are known to be something else, such as
    plus-face for plus, are set aside.

    Args:
        fitting: files that were made for the model at hand.
        known: all kinds there are names for.
        preset, found, folder: for the message: what was chosen, what all files are, and where they lie.

    Raises:
        MismatchError: none is left, or several are.
    """
    alike = [name for name, spec in fitting.items() if wanted.is_kind_of(spec)]
    for pattern in wanted.names:
        for name in alike:
            if _matches(pattern, name):
                return name
    others = [kind for kind in known if kind.names != wanted.names]
    unnamed = [name for name in alike if not any(kind.is_name_of(name) for kind in others)]
    if len(unnamed) == 1:
        return unnamed[0]
    if unnamed:
        raise MismatchError(
            f"several files that could be {preset}: {', '.join(unnamed)}",
            expected=f"one, or one named like {wanted.example}",
            action=f"rename the one you mean to {wanted.example}, or choose it in a loader that lists files",
        )
    raise MismatchError(
        f"no file for the preset {preset} and this model among {found or 'no files at all'}",
        expected=f"an adapter such as {wanted.example}",
        action=f"put it into {folder}",
        more=way_to(wanted.example),
    )


def _matches(pattern: str, name: str) -> bool:
    """Whether a name ends in a published name and a suffix of adapter files."""
    return re.search(pattern + _ENDING, name, re.IGNORECASE) is not None
