"""`ImageEncoder`: the frozen vision model that references go through, read as the nodes read it."""

# B pictures, H W their size, S input size or feature positions, E feature width

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ipadapter_core.encoder.folder import VisionFolder
from ipadapter_core.encoder.known import EncoderSpec
from ipadapter_core.encoder.pixels import PixelFormat, encoder_pixels, no_image_pixels, noise_pixels
from ipadapter_core.errors import MismatchError
from ipadapter_core.file.spec import Feature, Negative

from ..config import EncoderConfig
from ..quiet import quiet_libraries
from .base import DTYPES, brought, fingerprint
from .encoder_files import EncoderFiles, find_encoder

_POOLED = "base"  # the kind of adapter that reads one embedding


@dataclass(frozen=True)
class ReferenceFormat:
    """How a reference picture becomes the encoder's input; small, and sent to the data workers."""

    pixel_format: PixelFormat
    crop: str
    padding: str | None = None

    def pixels(self, image: Tensor) -> Tensor:
        """Pictures (B, H, W, 3), 0..1, to (B, 3, S, S), normalised."""
        return encoder_pixels(image, self.pixel_format, self.crop, padding=self.padding)

    def noise(self, generator: torch.Generator) -> Tensor:
        """(1, 3, S, S), normalised: what stands for a dropped reference where the negative is noise."""
        return noise_pixels(self.pixel_format, generator)


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """A vision model, what is read of it, and how pictures are prepared for it.

    Attributes:
        name: folder name or hub id, recorded in what is exported.
        identity: changes whenever the features would.
        feature, layer: what is read; `layer` counts only for hidden states.
    """

    name: str
    identity: str
    vision: VisionFolder
    feature: Feature
    layer: int
    format: ReferenceFormat
    device: torch.device

    @property
    def spec(self) -> EncoderSpec:
        return self.vision.spec

    @property
    def width(self) -> int:
        """E."""
        width = self.spec.dim(self.feature)
        assert width is not None
        return width

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) to (B, E) or (B, S, E), float32."""
        with brought(self.vision.model, self.device):
            return self.vision.features(pixels.to(self.device), self.feature, self.layer).float()

    def no_image(self, negative: Negative) -> Tensor:
        """What stands for no reference: (1, E) or (1, S, E)."""
        features = self.features(no_image_pixels(negative, self.format.pixel_format))
        return torch.zeros_like(features) if negative is Negative.ZERO_FEATURES else features


def check_encoder(config: EncoderConfig, kind: str) -> tuple[EncoderFiles, Feature]:
    """What `load_image_encoder` loads and reads of it, with all errors that a header or a config tells."""
    files = find_encoder(config.model, "encoder.model")
    files.check_packages()
    spec = files.spec
    feature = (
        (Feature.IMAGE_EMBEDS if kind == _POOLED else Feature.HIDDEN_STATES)
        if config.feature == "auto"
        else Feature(config.feature)
    )
    if spec.dim(feature) is None:
        has = " or ".join(f'"{each.value}"' for each in Feature if spec.dim(each) is not None)
        raise MismatchError(
            f"{config.model} ({spec.name}) without {feature.value}",
            expected=f"encoder.feature = {has}: what it has",
            action="set encoder.feature, or choose another encoder.model",
        )
    if config.layer < -spec.num_layers - 1:
        raise MismatchError(
            f"{config.model} ({spec.name}) without {feature.value} of layer {config.layer}",
            expected=f"a layer from {-spec.num_layers - 1} to -1",
            action="correct encoder.layer",
        )
    return files, feature


def load_image_encoder(
    config: EncoderConfig, kind: str, device: torch.device, padding: str | None = None
) -> ImageEncoder:
    """Load the image encoder for an adapter of a kind.

    Args:
        padding: what fills a picture up with crop "pad"; None is the encoder's mean.

    Raises:
        MissingPackageError, UnreadableFileError: as `EncoderFiles`; the latter and ModelNotFoundError as `find_encoder`.
        MismatchError: the encoder does not have what is to be read of it.
    """
    quiet_libraries()
    files, feature = check_encoder(config, kind)
    vision = files.load()
    vision.model.to(device, DTYPES[config.precision])
    reference_format = ReferenceFormat(vision.pixel_format, config.crop, padding)
    identity = f"{fingerprint(vision.model)}/{feature.value}"
    if feature is Feature.HIDDEN_STATES:
        identity += f"/{config.layer}"
    name = Path(config.model).name if os.path.exists(config.model) else config.model
    return ImageEncoder(name, identity, vision, feature, config.layer, reference_format, device)
