"""ComfyUI's own progress bar and interruption."""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

import comfy.model_management
import comfy.utils

T = TypeVar("T")


def steps(items: Iterable[T], total: Sized) -> Iterator[T]:
    """Go through items; advances the node's bar after each and stops when the user interrupts."""
    bar = comfy.utils.ProgressBar(len(total))
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield item
        bar.update(1)
