"""Which reader a config asks for."""

import torch

from ..config import Config
from ..models.face_network import face_read
from ..models.image_encoder import load_image_encoder
from .faces import open_face_reader
from .pictures import PictureReader
from .reader import ReferenceReader


def open_reader(config: Config, device: torch.device, token_dim: int = 0) -> ReferenceReader:
    """Load what reads the references of a config.

    Args:
        token_dim: width of the base's text tokens, which says how large faces are cut for an image encoder; of no matter
            to others.

    Raises:
        ModelNotFoundError, UnreadableFileError, MismatchError: as `load_image_encoder` and `open_face_reader`.
    """
    kind, settings = config.adapter, config.encoder
    encoder = load_image_encoder(settings, kind.kind, device) if kind.reads_pictures else None
    if kind.reads_faces:
        return open_face_reader(settings.face_model, face_read(token_dim), encoder, device)
    assert encoder is not None
    return PictureReader(encoder)
