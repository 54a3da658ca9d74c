"""What cached entries depend on. Each difference here is another folder of the cache, so nothing stale is ever read."""

from collections.abc import Mapping

from ..backbones.backbone import Backbone
from ..config import Config
from ..readers.reader import ReferenceReader

Recipe = Mapping[str, object]
FORMAT = 1  # raised when entries of the same names come to mean something else


def latents_recipe(config: Config, base: Backbone) -> Recipe:
    """Of the targets' latents and sizes."""
    data = config.data
    is_random = data.crop == "random" or data.flip > 0
    return {
        "format": FORMAT,
        "autoencoder": base.vae_id,
        "resolution": data.resolution,
        "bucket_step": data.bucket_step if data.buckets else None,
        "crop": data.crop,
        "flip": data.flip,
        "seed": config.train.seed if is_random else None,
        "precision": config.cache.precision,
    }


def features_recipe(config: Config, reader: ReferenceReader) -> Recipe:
    """Of the references' features."""
    augment = config.data.augment
    return {
        "format": FORMAT,
        **reader.recipe,
        "augment": None if augment.is_neutral else augment.model_dump(),
        "seed": None if augment.is_neutral else config.train.seed,
        "precision": config.cache.precision,
    }


def text_recipe(config: Config, base: Backbone) -> Recipe:
    """Of the captions' embeddings."""
    return {
        "format": FORMAT,
        "text_encoder": base.text_id,
        "tokenizer": [[len(text.tokenizer), text.tokenizer.model_max_length] for text in base.texts],
        "precision": config.cache.precision,
    }
