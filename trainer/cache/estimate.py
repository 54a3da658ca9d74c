"""How much disk a cache will take."""

import torch

from ..config import Config
from ..models.base import Base
from ..models.image_encoder import ImageEncoder

_NAME_BYTES = 130  # of a tensor's name, shape and place in a shard's header


def estimate_bytes(
    config: Config, base: Base, encoder: ImageEncoder, *, pictures: int, references: int, captions: int
) -> dict[str, int]:
    """Bytes by kind in `cache.parts` and in "total", from the shapes that the models give for one picture and one text.

    Args:
        pictures, references, captions: how many different ones the data set has.
    """
    item = {"fp32": 4}.get(config.cache.precision, 2)
    size = encoder.format.pixel_format.size
    text, pooled = base.encode_text([""])
    features = encoder.features(torch.zeros(1, 3, size, size))
    latents = [base.latent_channels * (side // base.latent_factor) ** 2 for side in config.data.resolutions]
    variants = config.cache.variants
    nbytes = {
        "latents": pictures * variants * sum(2 * numbers * item + 6 * 4 + 3 * _NAME_BYTES for numbers in latents),
        "features": references * variants * (features.numel() * item + _NAME_BYTES),
        "text": (captions + 1) * ((text.numel() + (0 if pooled is None else pooled.numel())) * item + 2 * _NAME_BYTES),
    }
    kept = {kind: count for kind, count in nbytes.items() if kind in config.cache.parts}
    return kept | {"total": sum(kept.values())}
