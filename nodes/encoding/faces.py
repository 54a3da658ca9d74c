"""Faces to image tokens: found, cut out, encoded and projected once per content."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ipadapter_core.box import Box
from ...ipadapter_core.branch.tokens import ImageTokens
from ...ipadapter_core.encoder.pixels import check_image
from ...ipadapter_core.errors import BadInputError, MismatchError, one_of, with_article
from ...ipadapter_core.face.align import align_face
from ...ipadapter_core.face.detection import FACE_CHOICES, Face, choose_faces
from ...ipadapter_core.file.spec import CROPS, FaceSpec, Projection
from ..cache import CACHE
from ..progress import steps
from ..sockets import LoadedAdapter
from .encoder import VisionEncoder
from .face_model import FaceModel
from .pictures import digest, image_features, no_image_features

logger = logging.getLogger(__name__)

VERSIONS = {"auto": None, "v1": False, "v2": True}  # of FaceID-Plus: has it the shortcut?


@dataclass(frozen=True, eq=False)
class FaceReferences:
    """Faces to be encoded.

    Attributes:
        identities: (R, I), as the adapter reads them.
        pictures: (R, S, S, 3), 0..1, the aligned faces.
    """

    identities: Tensor
    pictures: Tensor


def face_spec(adapter: LoadedAdapter) -> FaceSpec:
    """What an adapter reads of a face.

    Raises:
        MismatchError: it reads pictures.
    """
    if adapter.spec.face is None:
        raise MismatchError(
            f"{adapter.name}, {with_article(adapter.spec.family)} adapter, which reads no face embedding",
            expected="a FaceID adapter",
            action="use Encode Image for IP-Adapter, or load a FaceID file",
        )
    return adapter.spec.face


def nearest_bytes(image: Tensor) -> Tensor:
    """Pictures (B, H, W, channels), 0..1, as (B, H, W, 3), uint8, on the CPU."""
    return (255 * check_image(image).cpu()).round().to(torch.uint8)


def find_faces(
    model: FaceModel, pictures: Tensor, spec: FaceSpec, choice: str, *, frames_close_ups: bool
) -> FaceReferences:
    """Find, choose and cut out the faces of pictures.

    Args:
        pictures: (B, H, W, 3), uint8.
        choice: one of `FACE_CHOICES`, for each picture.
        frames_close_ups: look again in a black frame where no face is found.

    Raises:
        BadInputError: a picture without a face.
        MismatchError: a face model whose embeddings the adapter does not read.
    """
    identities, crops = [], []
    for number, picture in steps(enumerate(pictures, 1), pictures):
        found = _find(model, picture, frames_close_ups)
        if not found:
            raise _no_face(number, len(pictures))
        for face in choose_faces(found, choice):
            identities.append(face.normed_embedding if spec.is_normed else face.embedding)
            crops.append(align_face(picture, face.landmarks, spec.crop_size))
    rows = torch.stack(identities)
    if rows.shape[1] != spec.identity_dim:
        raise MismatchError(
            f"{model.name}, whose embeddings are {rows.shape[1]} wide",
            expected=f"{spec.identity_dim} numbers",
            action="load buffalo_l (antelopev2 for Kolors) in the face model loader",
        )
    return FaceReferences(rows, torch.stack(crops).float() / 255)


def boxes_of_faces(model: FaceModel, pictures: Tensor) -> list[Box]:
    """Where the largest face of every picture (B, H, W, 3), 0..1, is, as far as it lies in the picture.

    Raises:
        BadInputError: a picture without a face.
    """
    boxes = []
    for number, picture in enumerate(nearest_bytes(pictures), 1):
        found = _find(model, picture, frames_close_ups=True)
        if not found:
            raise _no_face(number, len(pictures))
        (face,) = choose_faces(found, FACE_CHOICES[0])
        height, width = picture.shape[:2]
        left, top, right, bottom = (float(edge) for edge in face.box)
        boxes.append(
            Box(max(left / width, 0.0), max(top / height, 0.0), min(right / width, 1.0), min(bottom / height, 1.0))
        )
    return boxes


def face_features(
    adapter: LoadedAdapter, encoder: VisionEncoder, faces: FaceReferences, negative_image: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What the image encoder sees in the faces, (R, S, E), and in "no face", (R', S, E)."""
    features, _ = image_features(adapter, encoder, faces.pictures, CROPS[0], None)
    if negative_image is None:
        return features, no_image_features(adapter, encoder, features)[0]
    return features, image_features(adapter, encoder, negative_image, CROPS[0], None)[0]


def face_tokens(
    adapter: LoadedAdapter,
    identities: Tensor,
    features: tuple[Tensor, Tensor] | None = None,
    structure: float | None = None,
) -> ImageTokens:
    """Image tokens of faces.

    Args:
        identities: (R, I).
        features: of the faces (R, S, E) and of "no face" (R', S, E); None for adapters that read the identity alone.
        structure: as `IPAdapter.project_faces`.
    """
    parts = (identities, *(features or ()))
    key = ("face tokens", adapter.adapter_id, structure, *(digest(part) for part in parts))

    def project() -> ImageTokens:
        device = adapter.load_to_device()
        cond, uncond = (None, None) if features is None else (side.to(device) for side in features)
        nobody = torch.zeros(1 if uncond is None else len(uncond), identities.shape[1], device=device)
        project_faces = adapter.network.project_faces
        return ImageTokens(
            project_faces(identities.to(device), cond, structure).cpu(),
            project_faces(nobody, uncond, structure).cpu(),
            adapter.adapter_id,
        )

    return CACHE.get_or_make(key, ImageTokens, project, lambda tokens: tokens.num_bytes)


def structure_of(adapter: LoadedAdapter, version: str, structure: float) -> float | None:
    """The factor of a FaceID-Plus v2; None for v1 and for adapters without a face picture.

    Args:
        version: a key of `VERSIONS`; "auto" is what file and base tell, else v1 with a warning.
    """
    if adapter.spec.projection is not Projection.IDENTITY_AND_FACE:
        return None
    stated = one_of(version, VERSIONS, "version")
    has_shortcut = face_spec(adapter).has_shortcut if stated is None else stated
    if has_shortcut is None:
        hint = " (its name suggests v2)" if "v2" in adapter.name.lower() else ""
        logger.warning(
            "%s is FaceID-Plus v1 or v2, which have the same tensors%s: taken for v1. Set version in Encode Face for "
            "IP-Adapter.",
            adapter.name,
            hint,
        )
    return structure if has_shortcut else None


def _no_face(number: int, count: int) -> BadInputError:
    return BadInputError(
        f"no face in image {number} of {count}",
        expected="a picture in which a face can be seen, not too small and not cut off",
        action="choose another picture, crop it closer to the face, or leave more room around it",
    )


def _find(model: FaceModel, picture: Tensor, frames_close_ups: bool) -> tuple[Face, ...]:
    key = ("faces", model.identity, frames_close_ups, digest(picture))

    def find() -> tuple[Face, ...]:
        return model.find(picture) or (model.find_close_up(picture) if frames_close_ups else ())

    return CACHE.get_or_make(key, tuple, find, lambda faces: sum(face.embedding.nbytes for face in faces))
