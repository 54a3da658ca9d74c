"""How alike pictures are, as an image encoder has it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...ipadapter_core.encoder.pixels import check_image, encoder_pixels
from ...ipadapter_core.errors import MismatchError
from ...ipadapter_core.file.spec import CROPS, Feature
from ..cache import CACHE
from ..progress import steps
from ..sockets import LoadedAdapter
from .encoder import VisionEncoder, from_clip_vision
from .pictures import digest

_POSITIONS = 3  # dimensions of features that have a row for every position


@dataclass(frozen=True)
class _Whole:
    """What is read of a picture as a whole."""

    feature: Feature
    layer: int = -1


def encoder_at_hand(adapter: LoadedAdapter | None, clip_vision: object | None) -> VisionEncoder:
    """The connected encoder, else the adapter's. Raises MismatchError: there is none."""
    if clip_vision is not None:
        return from_clip_vision(clip_vision)
    if adapter is not None and adapter.encoder is not None:
        return adapter.encoder
    raise MismatchError(
        "no image encoder to compare with",
        expected="an adapter that was loaded with its encoder, or a CLIP_VISION",
        action="connect Load IP-Adapter (not with the encoder 'none') or Load CLIP Vision",
    )


def similarities(encoder: VisionEncoder, images: Tensor, references: Tensor) -> Tensor:
    """Cosine of the embedding of each image with that of each reference, (I, R).

    An embedding is the encoder's own of a whole picture; where it has none, the mean of its last hidden state.
    """
    rows, columns = (_embeddings(encoder, pictures) for pictures in (images, references))
    return rows @ columns.T


def _embeddings(encoder: VisionEncoder, images: Tensor) -> Tensor:
    """(B, E), each of length 1."""
    whole = _Whole(Feature.LAST_HIDDEN_STATE if encoder.spec.embed_dim is None else Feature.IMAGE_EMBEDS)
    rows = []
    for picture in steps(check_image(images).cpu(), images):

        def encode(picture: Tensor = picture) -> Tensor:
            pixels = encoder_pixels(picture[None], encoder.pixel_format, CROPS[0])
            features = encoder.encode(pixels, whole)
            return features.mean(dim=1) if features.ndim == _POSITIONS else features

        key = ("embedding", encoder.identity, encoder.pixel_format, whole.feature, digest(picture))
        rows.append(CACHE.get_or_make(key, Tensor, encode, lambda features: features.nbytes))
    return normalize(torch.cat(rows).double(), dim=-1)
