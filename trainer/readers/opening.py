"""Which reader a config's kind of adapter needs."""

from ..backbones.backbone import Backbone
from ..config import Config
from ..models.face_network import face_read
from ..models.image_encoder import load_image_encoder
from .faces import open_face_reader
from .pictures import PictureReader
from .reader import ReferenceReader


def open_reader(config: Config, base: Backbone) -> ReferenceReader:
    """Load what reads references.

    Args:
        base: with its model where faces are looked at, which are cut as large as its text tokens are wide.

    Raises:
        IPAdapterError: as `load_image_encoder` and `open_face_reader`.
    """
    kind, settings = config.adapter, config.encoder
    encoder = load_image_encoder(settings, kind.kind, base.device) if kind.reads_pictures else None
    if kind.reads_faces:
        token_dim = base.sites.sites[0].context_dim if kind.reads_pictures else 0
        return open_face_reader(settings.face_model, face_read(token_dim), encoder)
    assert encoder is not None
    return PictureReader(encoder)
