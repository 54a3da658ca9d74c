"""References read as pictures, by an image encoder: "features" (B, E), or (B, S, E) of its hidden states."""

# B pictures, S feature positions, E feature width

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from ipadapter_core.file.spec import Feature, Negative

from ..config import AugmentConfig
from ..data.prepare import reference_pixels
from ..models.image_encoder import ImageEncoder, ReferenceFormat
from .reader import FEATURES

PIXELS = "pixels"
_DIGITS = 5


@dataclass(frozen=True)
class PicturePreparation:
    """Pixels as an encoder wants them."""

    format: ReferenceFormat

    def prepare(
        self,
        image: Image.Image,
        changes: AugmentConfig,
        generator: torch.Generator,
        *,
        name: str = "",
        identity: Tensor | None = None,
    ) -> dict[str, Tensor]:
        return {PIXELS: reference_pixels(image, changes, self.format, generator)}

    def noise(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {PIXELS: self.format.noise(generator)[0]}


@dataclass(frozen=True, eq=False)
class PictureReader:
    """An image encoder as a reader."""

    encoder: ImageEncoder

    @property
    def name(self) -> str:
        return self.encoder.name

    @property
    def preparation(self) -> PicturePreparation:
        return PicturePreparation(self.encoder.format)

    @property
    def models(self) -> Mapping[str, nn.Module]:
        return {"image encoder": self.encoder.vision.model}

    @property
    def host_bytes(self) -> int:
        return 0

    @property
    def recipe(self) -> Mapping[str, object]:
        pixels = self.encoder.format.pixel_format
        return {
            "encoder": self.encoder.identity,
            "size": pixels.size,
            "mean": list(pixels.mean),
            "std": list(pixels.std),
            "crop": self.encoder.format.crop,
        }

    @property
    def settings(self) -> Mapping[str, object]:
        pixels = self.encoder.format.pixel_format
        return {
            "encoder.feature": self.encoder.feature.value,
            "encoder.layer": self.encoder.layer,
            "encoder.crop": self.encoder.format.crop,
            "the picture size of encoder.model": pixels.size,
            "the normalisation of encoder.model": [round(value, _DIGITS) for value in (*pixels.mean, *pixels.std)],
        }

    @property
    def words(self) -> Mapping[str, object]:
        feature = self.encoder.feature
        layer = "" if feature is Feature.IMAGE_EMBEDS else f" of layer {self.encoder.layer}"
        return {"encoder": self.encoder.spec.name, "reads": f"{feature.value}{layer}"}

    def read(self, prepared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {FEATURES: self.encoder.features(prepared[PIXELS])}

    def no_image(self, negative: Negative) -> dict[str, Tensor]:
        return {FEATURES: self.encoder.no_image(negative)}
