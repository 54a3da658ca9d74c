"""How much disk a cache will take."""

from collections.abc import Mapping

from torch import Tensor

from ipadapter_core.file.spec import Negative

from ..backbones.backbone import Backbone
from ..config import Config
from ..readers.reader import ReferenceReader

_NAME_BYTES = 130  # of a tensor's name, shape and place in a shard's header


def estimate_bytes(
    config: Config, base: Backbone, reader: ReferenceReader, *, pictures: int, references: int, captions: int
) -> dict[str, int]:
    """Bytes by kind in `cache.parts` and in "total", from the shapes that the models give for one picture and one text.

    Args:
        pictures, references, captions: how many different ones the data set has.
    """
    item = {"fp32": 4}.get(config.cache.precision, 2)
    text = base.encode_text([""])
    features = reader.no_image(Negative.ZERO_PIXELS)
    latents = [base.latent_channels * (side // base.latent_factor) ** 2 for side in config.data.resolutions]
    variants = config.cache.variants
    nbytes = {
        "latents": pictures * variants * sum(2 * numbers * item + 6 * 4 + 3 * _NAME_BYTES for numbers in latents),
        "features": references * variants * _bytes(features, item),
        "text": (captions + 1) * _bytes(text, item),
    }
    kept = {kind: count for kind, count in nbytes.items() if kind in config.cache.parts}
    return kept | {"total": sum(kept.values())}


def _bytes(entry: Mapping[str, Tensor], item: int) -> int:
    """Of an entry with values of so many bytes."""
    return sum(tensor.numel() * item + _NAME_BYTES for tensor in entry.values())
