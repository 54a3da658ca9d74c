"""Reference pictures to image tokens, encoded once per content."""

import hashlib
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from ...ipadapter_core.branch.masks import check_mask
from ...ipadapter_core.branch.tokens import ImageTokens, combine
from ...ipadapter_core.encoder.choice import check_encoder, encoder_need
from ...ipadapter_core.encoder.pixels import check_image, encoder_pixels, no_image_pixels
from ...ipadapter_core.encoder.prepare import shown
from ...ipadapter_core.errors import BadInputError, MismatchError, with_article
from ...ipadapter_core.file.spec import CROPS, Negative
from ..cache import CACHE
from ..progress import steps
from ..sockets import LoadedAdapter
from .encoder import VisionEncoder, from_clip_vision

logger = logging.getLogger(__name__)

SMALLEST_SIDE = 16  # pixels; below it a picture is hardly more than a colour
RGBA = 4  # channels
_MOST_SHOWN = 8  # pictures on a node; an animation may have hundreds


def choose(adapter: LoadedAdapter, clip_vision: object | None = None) -> VisionEncoder:
    """The encoder to use with an adapter that reads pictures.

    Raises:
        MismatchError: it reads faces; or as `encoder_of`.
    """
    if adapter.spec.face is not None:
        raise MismatchError(
            f"{adapter.name}, {with_article(adapter.spec.family)} adapter, which reads faces",
            expected="an adapter that reads pictures",
            action="use Encode Face for IP-Adapter (with Load Face Model for IP-Adapter), and connect its tokens to Apply "
            "IP-Adapter",
        )
    return encoder_of(adapter, clip_vision)


def encoder_of(adapter: LoadedAdapter, clip_vision: object | None = None) -> VisionEncoder:
    """The connected encoder, else the loader's, at the resolution that the adapter states or the loader was told.

    Raises:
        MismatchError: there is none, or it does not fit the adapter.
        BadInputError: a resolution it cannot read.
    """
    if clip_vision is not None:
        encoder = from_clip_vision(clip_vision)
    elif adapter.encoder is not None:
        encoder = adapter.encoder
    else:
        raise MismatchError(
            f"{adapter.name} without an image encoder: none was loaded, and no CLIP_VISION is connected",
            expected=encoder_need(adapter.spec),
            action="choose 'auto' as image encoder in Load IP-Adapter, or connect a CLIP_VISION to the encode node",
        )
    check_encoder(encoder.spec, adapter.spec)
    return encoder.at(adapter.spec.encoder.image_size)


def encode_image(
    adapter: LoadedAdapter,
    encoder: VisionEncoder,
    image: Tensor,
    *,
    crop: str | None = None,
    negative_image: Tensor | None = None,
    mask: Tensor | None = None,
) -> ImageTokens:
    """Encode references and project them; features and tokens come from the cache when nothing they depend on changed.

    Args:
        image: (R, H, W, channels), 0..1; R references.
        crop: None is the one the adapter was trained with, as its file says, or the usual one.
        negative_image: (R', H, W, channels) for the uncond side; without it the adapter's own convention.
        mask: (1 or R, H, W), what of the reference counts.

    Raises:
        BadInputError: a picture or mask that cannot be used.
    """
    crop = crop or adapter.spec.encoder.crop or CROPS[0]
    features, key = image_features(adapter, encoder, image, crop, mask)
    if negative_image is not None:
        negative, negative_key = image_features(adapter, encoder, negative_image, crop, None)
    else:
        negative, negative_key = no_image_features(adapter, encoder, features)
    key = ("tokens", adapter.adapter_id, key, negative_key)
    return CACHE.get_or_make(
        key, ImageTokens, lambda: adapter.project(features, negative), lambda tokens: tokens.num_bytes
    )


def encode_several(
    adapter: LoadedAdapter,
    encoder: VisionEncoder,
    images: Sequence[Tensor],
    strengths: Sequence[float],
    crop: str | None = None,
) -> ImageTokens:
    """Several references behind each other, each as `encode_image` has it.

    Args:
        strengths: of the images in their order; 0 leaves one out, and those not listed have 1.

    Raises:
        BadInputError: more strengths than images, or nothing but zeros; or as `encode_image`.
    """
    if len(strengths) > len(images):
        raise BadInputError(
            f"{len(strengths)} image strengths for {len(images)} images",
            expected="at most one for each image that is connected",
            action="shorten the list, or connect more images",
        )
    factors = [*strengths, *[1.0] * (len(images) - len(strengths))]
    if not any(factors):
        raise BadInputError(
            "image strengths that are all 0",
            expected="at least one image that acts",
            action="give one of them another strength; to switch the adapter off set the strength itself to 0",
        )
    acting = [(image, factor) for image, factor in zip(images, factors, strict=True) if factor]
    parts = [encode_image(adapter, encoder, image, crop=crop) for image, _ in acting]
    if all(factor == 1 for _, factor in acting) and len(parts) == 1:
        return parts[0]
    return combine(parts, "concat", [factor for _, factor in acting])


def seen(
    adapter: LoadedAdapter, encoder: VisionEncoder, image: Tensor, crop: str | None = None, mask: Tensor | None = None
) -> Tensor:
    """The first few references as the encoder gets them, (R, S, S, 3), 0..1. Arguments as `encode_image`."""
    pictures, hint = check_image(image), adapter.spec.encoder
    masks = None if mask is None else _one_mask_per_picture(check_mask(mask), len(pictures))[:_MOST_SHOWN]
    crop = crop or hint.crop or CROPS[0]
    pixels = encoder_pixels(pictures[:_MOST_SHOWN].cpu(), encoder.pixel_format, crop, masks, hint.padding)
    return shown(pixels, encoder.pixel_format)


def image_features(
    adapter: LoadedAdapter, encoder: VisionEncoder, image: Tensor, crop: str, mask: Tensor | None
) -> tuple[Tensor, tuple[object, ...]]:
    """Features (R, E) or (R, S, E) of every picture, and the key of all of them. Arguments as `encode_image`."""
    pictures = check_image(image)
    _warn_about(image)
    masks = None if mask is None else _one_mask_per_picture(check_mask(mask), len(pictures))
    keys = [
        _key(adapter, encoder, crop, digest(picture), None if masks is None else digest(masks[index]))
        for index, picture in enumerate(pictures)
    ]
    rows: list[Tensor] = []
    for index, key in steps(enumerate(keys), keys):
        picture_mask = None if masks is None else masks[index : index + 1]

        def encode(index: int = index, picture_mask: Tensor | None = picture_mask) -> Tensor:
            picture = pictures[index : index + 1].cpu()
            pixels = encoder_pixels(picture, encoder.pixel_format, crop, picture_mask, adapter.spec.encoder.padding)
            return encoder.encode(pixels, adapter.spec)

        rows.append(CACHE.get_or_make(key, Tensor, encode, lambda features: features.nbytes))
    return torch.cat(rows), tuple(keys)


def no_image_features(
    adapter: LoadedAdapter, encoder: VisionEncoder, features: Tensor
) -> tuple[Tensor, tuple[object, ...]]:
    """Features of "no image" by the convention the adapter was trained with, and their key."""
    convention = adapter.spec.negative
    if convention is Negative.SAME_PICTURE:
        return features, (convention,)
    if convention is Negative.ZERO_FEATURES:
        return torch.zeros_like(features[:1]), (convention,)
    key = _key(adapter, encoder, convention, "", None)

    def encode() -> Tensor:
        return encoder.encode(no_image_pixels(convention, encoder.pixel_format), adapter.spec)

    return CACHE.get_or_make(key, Tensor, encode, lambda negative: negative.nbytes), key


def _key(
    adapter: LoadedAdapter, encoder: VisionEncoder, crop: str, picture: str, mask: str | None
) -> tuple[object, ...]:
    spec, cut = adapter.spec, (crop, adapter.spec.encoder.padding)
    return ("features", encoder.identity, encoder.pixel_format, spec.feature, spec.layer, cut, picture, mask)


def digest(tensor: Tensor) -> str:
    """Hash of a tensor's shape and content."""
    hashed = hashlib.blake2b(repr(tuple(tensor.shape)).encode(), digest_size=16)
    hashed.update(tensor.cpu().contiguous().numpy().data)
    return hashed.hexdigest()


def _one_mask_per_picture(masks: Tensor, pictures: int) -> Tensor:
    if len(masks) not in (1, pictures):
        raise BadInputError(
            f"{len(masks)} reference masks for {pictures} reference images",
            expected="one mask, or one per image",
            action="connect masks that belong to these images",
        )
    if not masks.flatten(1).any(dim=1).all():
        raise BadInputError(
            "a reference mask that is all zero, so that nothing of the image counts",
            expected="1 where the reference counts",
            action="remove it, or invert it: the MASK of Load Image is 1 where a picture is transparent, and all zero "
            "without an alpha channel",
        )
    return masks.expand(pictures, -1, -1)


def _warn_about(image: Tensor) -> None:
    height, width, channels = image.shape[-3:]
    if channels == RGBA:
        logger.warning(
            "The reference image has an alpha channel, which is not used. To leave its transparent part out, connect "
            "the MASK of Load Image through Invert Mask."
        )
    if min(height, width) < SMALLEST_SIDE:
        logger.warning(
            "The reference image is only %d x %d pixels: it says little more than a colour. Use a larger one.",
            width,
            height,
        )
