"""Which reader a config asks for."""

import torch

from ..config import Config
from ..models.image_encoder import load_image_encoder
from .pictures import PictureReader


def open_reader(config: Config, device: torch.device) -> PictureReader:
    """Load what reads the references of a config.

    Raises:
        ModelNotFoundError, UnreadableFileError, MismatchError: as `load_image_encoder`.
    """
    return PictureReader(load_image_encoder(config.encoder, config.adapter.kind, device))
