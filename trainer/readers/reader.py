"""`ReferenceReader`: from a reference to the features an adapter reads, in two steps.

The data workers prepare, picture by picture and on the CPU; the models then read whole batches on the device. What a
cache keeps is what the models gave.
"""

# B references

from collections.abc import Mapping
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ipadapter_core.file.spec import Negative

from ..config import AugmentConfig
from ..models.image_encoder import ImageEncoder

FEATURES, IDENTITY = "features", "identity"
"""Names of what an image encoder gives, and of a face's embedding."""


class Preparation(Protocol):
    """How a reference becomes a reader's input; small, and sent to the data workers."""

    def prepare(
        self,
        image: Image.Image,
        changes: AugmentConfig,
        generator: torch.Generator,
        *,
        name: str = "",
        identity: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Named tensors of one picture (RGB), changed at random.

        Args:
            name: of the picture, for the error.
            identity: (I,), the embedding of its face where the data has it ready.

        Raises:
            BrokenPictureError: nothing to read is in the picture.
        """

    def noise(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The same of a picture of noise, which stands for a dropped reference where the negative is noise."""


class ReferenceReader(Protocol):
    """Models that read references.

    Attributes:
        name: recorded in what is exported.
        preparation: what the data workers do.
        encoder: of pictures; None where none is read.
        models: by what they are called in messages; each takes room on the device.
        host_bytes: of what the data workers read with, each its own, on the host.
        recipe: all that cached features depend on.
        settings: what of it a run that goes on may not change, by the words of messages.
        words: what a plan says of it.
    """

    @property
    def name(self) -> str: ...

    @property
    def preparation(self) -> Preparation: ...

    @property
    def encoder(self) -> ImageEncoder | None: ...

    @property
    def models(self) -> Mapping[str, nn.Module]: ...

    @property
    def host_bytes(self) -> int: ...

    @property
    def recipe(self) -> Mapping[str, object]: ...

    @property
    def settings(self) -> Mapping[str, object]: ...

    @property
    def words(self) -> Mapping[str, object]: ...

    def read(self, prepared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `prepare` made of B references, stacked, to named features with B rows, float32."""

    def no_image(self, negative: Negative) -> dict[str, Tensor]:
        """What stands for no reference: features with one row, on the device, lest each step copies them."""
