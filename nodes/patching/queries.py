"""The queries of a block's attention before positions are put into them, for what runs after them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .applied import KEY

QUERIES = f"{KEY}_queries"  # in the options of one block
HOLDER = f"{KEY}_holder"  # in the options of one block: where a block leaves its queries for what comes after it
BEFORE = "attn1_patch"  # the list of patches


@dataclass(frozen=True, eq=False)
class KeepQueries:
    """In the list `attn1_patch`: remembers the queries of a block."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, extra_options: dict[str, Any], **_: Any) -> dict[str, Any]:
        extra_options[QUERIES] = q
        if (holder := extra_options.get(HOLDER)) is not None:
            holder.append((q, *picture(extra_options, q.shape[2])))
        return {}


def picture(options: Mapping[str, Any], length: int) -> tuple[int, int]:
    """The first of a sequence's tokens that are of the picture, and the one after the last; references lie behind them."""
    first, last = options.get("img_slice", (0, length))
    return first, last - sum(options.get("reference_image_num_tokens", ()))
