"""Image features as IPAdapter_plus made them: the middle square, and black where there is no image."""

import torch
from torch import Tensor
from torch.nn import functional

from ...ipadapter_core.masks import check_mask
from ...ipadapter_core.preprocess import check_image, encoder_pixels
from ...ipadapter_core.spec import Feature
from ..encode import image_features
from ..progress import steps
from .payload import Payload

_CROP = "center"


def positive_features(payload: Payload, image: Tensor, mask: Tensor | None = None) -> Tensor:
    """Features of references.

    Args:
        image: (R, H, W, channels), 0..1.
        mask: (M, H', W'), 1 where a reference counts; its own middle square is laid over that of the picture, the last
            mask serves further pictures.

    Returns:
        (R, E) or (R, S, E), whichever the adapter reads.

    Raises:
        MismatchError, BadInputError: no fitting encoder, or a picture or mask that cannot be used.
    """
    encoder = payload.encoder()
    if mask is None:
        return image_features(payload.adapter, encoder, image, _CROP, None)[0]
    pictures = check_image(image).cpu()
    masks = _square_masks(check_mask(mask), encoder.pixel_format.size)
    rows = []
    for index, picture in steps(enumerate(pictures), pictures):
        pixels = encoder_pixels(picture[None], encoder.pixel_format, _CROP) * masks[min(index, len(masks) - 1)]
        rows.append(encoder.encode(pixels, payload.adapter.spec))
    return torch.cat(rows)


def negative_features(payload: Payload, positive: Tensor) -> Tensor:
    """Features of "no image": zeros for adapters that read pooled embeds, a black picture for the others."""
    if payload.adapter.spec.feature is Feature.IMAGE_EMBEDS:
        return torch.zeros_like(positive)
    encoder = payload.encoder()
    size = encoder.pixel_format.size
    return image_features(payload.adapter, encoder, torch.zeros(1, size, size, 3), _CROP, None)[0]


def _square_masks(masks: Tensor, size: int) -> Tensor:
    """(M, 1, size, size)."""
    side = min(masks.shape[1:])
    top, left = ((length - side) // 2 for length in masks.shape[1:])
    square = masks[:, None, top : top + side, left : left + side]
    return functional.interpolate(square, size=(size, size), mode="bicubic", antialias=True)
