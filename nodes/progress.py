"""ComfyUI's own progress bar, interruption, and the text that comes and goes on a node while it runs."""

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

import comfy.model_management
import comfy.utils
from server import PromptServer

T = TypeVar("T")


def steps(items: Iterable[T], total: Sized) -> Iterator[T]:
    """Go through items; advances the node's bar after each and stops when the user interrupts."""
    bar = comfy.utils.ProgressBar(len(total))
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield item
        bar.update(1)


def show_on_node(text: str, node_id: str | None) -> None:
    """Show a text on a node while it runs; without a running server there is nothing to show it on."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and node_id is not None:
        server.send_progress_text(text, node_id)
