"""What a forward shows to attention layers that the model calls without arguments for them."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from torch.utils.checkpoint import checkpoint

from .backbone import Backbone
from .image_prompt import KV, ImagePrompt


class Shown:
    """What `predict` gives to the layers, which diffusers calls without arguments for their attention."""

    def __init__(self) -> None:
        self.image: ImagePrompt | None = None
        self.cells = 0

    def kv(self, site: int) -> KV | None:
        return None if self.image is None else self.image.kv[site]

    @contextmanager
    def showing(self, image: ImagePrompt | None, cells: int) -> Iterator[None]:
        before = self.image, self.cells
        self.image, self.cells = image, cells
        try:
            yield
        finally:
            self.image, self.cells = before

    def checkpointed(self, layer: Callable[..., Any], *given: Any) -> Any:
        """Run a layer that a backward pass runs again, when other images may be shown, or none."""
        image, cells = self.image, self.cells

        def run(*again: Any) -> Any:
            with self.showing(image, cells):
                return layer(*again)

        return checkpoint(run, *given, use_reentrant=False)


class ShowingBackbone(Backbone):
    """A model whose attention looks at what `predict` shows."""

    @property
    @abstractmethod
    def attentions(self) -> tuple[Any, ...]:
        """The layers that take images, in the order of the sites."""

    @abstractmethod
    def processor(self, site: int) -> Any:
        """The attention of a site."""

    @cached_property
    def shown(self) -> Shown:
        return Shown()

    def install(self) -> None:
        for site, attention in enumerate(self.attentions):
            attention.set_processor(self.processor(site))

    def enable_checkpointing(self) -> None:
        self.model.enable_gradient_checkpointing(self.shown.checkpointed)
