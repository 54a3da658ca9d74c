"""From decoded pictures to what the models take. The data workers and the cache command both come through here."""

# H W pixels, S encoder input, h w latent size

import hashlib
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..config import AugmentConfig, DataConfig
from ..draws import sample_generator
from ..models.image_encoder import ReferenceFormat
from .augment import augment
from .buckets import Framing, Placement, bucket_sizes, nearest_bucket, place
from .pictures import Picture, Size, as_tensor, decode, upright_size

TARGET, REFERENCE = "target", "reference"
"""Purposes of generators: what is random about a target (crop, flip) and about a reference (its augmentation)."""


def caption_digest(caption: str) -> str:
    """Key of a caption's cached embeddings."""
    return hashlib.blake2b(caption.encode(), digest_size=16).hexdigest()


def entry_key(digest: str, variant: int) -> str:
    """Key of one variant (crop, flip, augmentation) of a picture's cached latents or features."""
    return f"{digest}:{variant}"


def latents_key(digest: str, variant: int, bucket: Size | None) -> str:
    """Key of a target's latents, with several resolutions (see `cached_sizes`) those of one size."""
    key = entry_key(digest, variant)
    return f"{key}:{bucket[0]}x{bucket[1]}" if bucket else key


def variant_generator(seed: int, digest: str, variant: int, purpose: str) -> torch.Generator:
    """What makes a cached variant: the same for every run with this seed."""
    return sample_generator(seed, variant, f"{purpose}/{digest}")


def bucket_of(picture: Picture, data: DataConfig) -> Size:
    """The size a picture is trained at. Raises BrokenPictureError if its header cannot be read."""
    sizes = bucket_sizes(data)
    return sizes[0] if len(sizes) == 1 else nearest_bucket(upright_size(picture), sizes)


def buckets_of(picture: Picture, data: DataConfig, resolutions: Sequence[int]) -> tuple[Size, ...]:
    """The sizes a picture is trained at, one for each resolution; without buckets it is not looked at."""
    sizes = [bucket_sizes(data, resolution) for resolution in resolutions]
    if not data.buckets:
        return tuple(size for (size,) in sizes)
    upright = upright_size(picture)
    return tuple(nearest_bucket(upright, of_resolution) for of_resolution in sizes)


def cached_sizes(picture: Picture, data: DataConfig) -> tuple[Size | None, ...]:
    """The sizes in the keys of its latents: none with one resolution, where the picture need not be looked at."""
    return buckets_of(picture, data, data.resolutions) if data.more_resolutions else (None,)


def place_target(image: Image.Image, framing: Framing, bucket: Size, generator: torch.Generator) -> Placement:
    """Choose crop and flip of a target."""
    return place((image.height, image.width), bucket, framing, generator)


def target_pixels(image: Image.Image, placement: Placement) -> Tensor:
    """(3, H, W), -1..1, of the bucket's size."""
    pixels = placement.apply(image, Image.Resampling.LANCZOS)
    return pixels.movedim(-1, 0).float() / 127.5 - 1


def loss_mask(mask: Picture, placement: Placement, latent_factor: int) -> Tensor:
    """A target's mask as the loss wants it.

    Returns:
        (1, h, w), 0..1, the mean over each latent cell.

    Raises:
        BrokenPictureError: the mask cannot be read.
    """
    pixels = placement.apply(decode(mask).convert("L"), Image.Resampling.BILINEAR)
    return functional.avg_pool2d(pixels.movedim(-1, 0).float() / 255, latent_factor)


def reference_pixels(
    image: Image.Image, changes: AugmentConfig, reference_format: ReferenceFormat, generator: torch.Generator
) -> Tensor:
    """A reference as the encoder wants it, (3, S, S), changed at random."""
    pixel_format = reference_format.pixel_format
    if changes.is_neutral:
        pixels = as_tensor(image).float() / 255
    else:
        scale = 2 * pixel_format.size / min(image.size)  # what is smaller than a pixel to the encoder costs time only
        if scale < 1:
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(size, Image.Resampling.BICUBIC)
        pixels = as_tensor(image).movedim(-1, 0).float() / 255
        pixels = augment(pixels, changes, pixel_format.mean, generator).movedim(0, -1)
    return reference_format.pixels(pixels[None])[0]
