"""Faces as IPAdapter_plus encodes them: the first one of each picture, and its cut-out through the image encoder."""

from torch import Tensor

from ...ipadapter_core.branch.tokens import ImageTokens
from ...ipadapter_core.encoder.pixels import check_image
from ...ipadapter_core.errors import BadInputError, MismatchError, with_article
from ...ipadapter_core.face.detection import check_proportions
from ...ipadapter_core.file.spec import FaceSpec, Projection
from ...ipadapter_core.legacy.embeds import combine_sides
from ...ipadapter_core.legacy.preparation import cut_to_bytes
from ..encoding.face_model import LICENCE, FaceModel
from ..encoding.faces import FaceReferences, face_tokens, find_faces
from .features import negative_features, positive_features
from .payload import PLUS_V2, Payload

_FIRST = "first"


def encode_faces(
    payload: Payload, image: Tensor, method: str, structure: float, image_negative: Tensor | None = None
) -> tuple[ImageTokens, Tensor]:
    """Image tokens of the first face of every picture, and the faces as they were cut out.

    Args:
        method: how embeddings and features of several faces are combined; see `combine_sides`.
        structure: factor of the face's picture in FaceID-Plus v2; without effect on other adapters.
        image_negative: for the image encoder; the negative of an embedding is zeros in any case.

    Raises:
        MismatchError: no face model, or no image encoder where the adapter needs one.
        BadInputError: a picture without a face.
    """
    face, adapter = payload.adapter.spec.face, payload.adapter
    assert face is not None
    faces = first_faces(payload, face, image)
    identities, _ = combine_sides(faces.identities, faces.identities, method)
    if not adapter.spec.reads_pictures:
        return face_tokens(adapter, identities), faces.pictures
    positive = positive_features(payload, faces.pictures)
    negative = negative_features(payload, positive, image_negative)
    features = combine_sides(positive, negative, method)
    return face_tokens(adapter, identities, features, _structure(payload, face, structure)), faces.pictures


def first_faces(payload: Payload, face: FaceSpec, image: Tensor) -> FaceReferences:
    """The first face of every picture.

    Raises:
        MismatchError: no face model.
        BadInputError: another thing in place of a face model, or a picture without a face.
    """
    if payload.face_model is None:
        raise MismatchError(
            f"{payload.adapter.name}, {with_article(payload.adapter.spec.family)} adapter, without a face model",
            expected="an INSIGHTFACE",
            action="connect IPAdapter InsightFace Loader to insightface, or load the adapter with IPAdapter Unified "
            f"Loader FaceID. {LICENCE}",
        )
    if not all(hasattr(payload.face_model, part) for part in ("get", "det_model")):
        raise BadInputError(
            f"an INSIGHTFACE that is a {type(payload.face_model).__name__}",
            expected="InsightFace's FaceAnalysis, or what speaks its language",
            action="connect IPAdapter InsightFace Loader",
        )
    model = FaceModel("the face model", payload.face_model)
    pictures = check_image(image)
    check_proportions(pictures)
    return find_faces(model, cut_to_bytes(pictures), face, _FIRST, frames_close_ups=False)


def _structure(payload: Payload, face: FaceSpec, structure: float) -> float | None:
    """The factor of a FaceID-Plus v2, told by the file or, as IPAdapter_plus does, by its name; None of v1."""
    if payload.adapter.spec.projection is not Projection.IDENTITY_AND_FACE:
        return None
    is_v2 = payload.raw.get(PLUS_V2, False) if face.has_shortcut is None else face.has_shortcut
    return structure if is_v2 else None
