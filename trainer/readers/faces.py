"""References read as faces: "identity" (B, I) of the largest face of a picture, by a recognition network or as the data
brings it, and for FaceID-Plus "features" (B, S, E) of its aligned picture.

Faces are found, aligned and recognised on the CPU, by the data workers: one picture in which there is none is then
skipped and counted as a broken one is.
"""

# B pictures, I identity dim, S feature positions, E feature width, H W pixels

import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from ipadapter_core.errors import BadInputError, MismatchError
from ipadapter_core.face.align import align_face
from ipadapter_core.face.detection import FACE_CHOICES, check_proportions, choose_faces
from ipadapter_core.file.published import way_to
from ipadapter_core.file.spec import FaceSpec, Negative
from ipadapter_core.recognition.model import FaceFinder, pack_files
from ipadapter_core.recognition.onnx import load_onnx_pack

from ..config import AugmentConfig
from ..data.pictures import BrokenPictureError, as_tensor
from ..data.prepare import reference_pixels
from ..hub import ModelNotFoundError
from ..models.image_encoder import ImageEncoder, ReferenceFormat
from ..optimizer import MissingPackageError
from .pictures import PIXELS, PictureReader
from .reader import FEATURES, IDENTITY

READY = "ready embeddings"
_PROVIDER = "CPUExecutionProvider"  # the workers are many, and a GPU is the model's
_CHUNK = 1 << 24  # bytes hashed at once
_opening = threading.Lock()
_opened: dict[tuple[int, Path], tuple[FaceFinder, threading.Lock]] = {}


@dataclass(frozen=True)
class FacePreparation:
    """From a picture to the embedding of its face, and the face as the image encoder wants it.

    Attributes:
        pack: folder of the networks; None where embeddings come with the data.
        face: what the adapter reads.
        format: of the image encoder's input; None where no picture is read.
    """

    pack: Path | None
    face: FaceSpec
    format: ReferenceFormat | None

    def prepare(
        self,
        image: Image.Image,
        changes: AugmentConfig,
        generator: torch.Generator,
        *,
        name: str = "",
        identity: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The random changes are made to the aligned picture; the embedding is that of the picture as it is.

        Raises:
            BrokenPictureError: no face in it, or no embedding with it.
            MismatchError: an embedding of another width.
        """
        if self.pack is None:
            if identity is None:
                raise BrokenPictureError(name, "no embedding of its face comes with it")
            crop = image
        else:
            identity, crop = self._find(image, name)
        if identity.shape != (self.face.identity_dim,):
            raise MismatchError(
                f"{name} with an embedding of shape {list(identity.shape)}",
                expected=f"{self.face.identity_dim} numbers, as ArcFace gives",
                action="choose encoder.face_model = buffalo_l or antelopev2, or correct the ready embeddings",
            )
        found = {IDENTITY: functional.normalize(identity.float(), dim=0) if self.face.is_normed else identity.float()}
        if self.format is not None:
            found[PIXELS] = reference_pixels(crop, changes, self.format, generator)
        return found

    def noise(self, generator: torch.Generator) -> dict[str, Tensor]:
        raise NotImplementedError("adapter.negative of faces is never noise")

    def _find(self, image: Image.Image, name: str) -> tuple[Tensor, Image.Image]:
        """Embedding and aligned picture of the largest face."""
        assert self.pack is not None
        picture = as_tensor(image)
        finder, running = _finder(self.pack)
        try:
            check_proportions(picture[None])
            with running:
                faces = finder.find(picture) or finder.find_close_up(picture)
            if not faces:
                raise BrokenPictureError(name, "no face found in it")
            (face,) = choose_faces(faces, FACE_CHOICES[0])
            crop = align_face(picture, face.landmarks, self.face.crop_size)
        except BadInputError as error:
            raise BrokenPictureError(name, error.found) from error
        return face.embedding, Image.fromarray(crop.numpy())


@dataclass(frozen=True, eq=False)
class FaceReader:
    """A face pack, and for FaceID-Plus an image encoder, as a reader.

    Attributes:
        pack: folder of the networks; None where embeddings come with the data.
        identity: changes whenever the embeddings would.
        pictures: reads the aligned faces; None where no picture is read.
        device: where features go.
    """

    pack: Path | None
    identity: str
    face: FaceSpec
    pictures: PictureReader | None
    device: torch.device

    @property
    def name(self) -> str:
        own = READY if self.pack is None else self.pack.name
        return own if self.pictures is None else f"{own} and {self.pictures.name}"

    @property
    def preparation(self) -> FacePreparation:
        return FacePreparation(
            self.pack, self.face, None if self.pictures is None else self.pictures.preparation.format
        )

    @property
    def encoder(self) -> ImageEncoder | None:
        return None if self.pictures is None else self.pictures.encoder

    @property
    def models(self) -> Mapping[str, nn.Module]:
        return {} if self.pictures is None else self.pictures.models

    @property
    def host_bytes(self) -> int:
        return 0 if self.pack is None else sum(file.stat().st_size for file in pack_files(self.pack))

    @property
    def recipe(self) -> Mapping[str, object]:
        pictures = {} if self.pictures is None else self.pictures.recipe
        return {**pictures, "faces": self.identity, "face_crop": self.face.crop_size if pictures else None}

    @property
    def settings(self) -> Mapping[str, object]:
        return {
            **({} if self.pictures is None else self.pictures.settings),
            "the networks of encoder.face_model": self.identity,
        }

    @property
    def words(self) -> Mapping[str, object]:
        more = {} if self.pictures is None else self.pictures.words
        reads = "".join(f" and {more[name]}" for name in ("reads",) if name in more)
        return {"encoder": self.name, "reads": f"faces{reads}"}

    def read(self, prepared: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of pictures (B, …), or of K of one person each (B, K, …)."""
        identity = prepared[IDENTITY]
        read = {IDENTITY: identity}
        if self.pictures is not None:
            pixels = prepared[PIXELS]
            features = self.pictures.read({PIXELS: pixels.flatten(0, identity.ndim - 2)})[FEATURES]
            read[FEATURES] = features.reshape(*identity.shape[:-1], *features.shape[1:])
        return read

    def no_image(self, negative: Negative) -> dict[str, Tensor]:
        """No face is an embedding of zeros, as in the nodes."""
        pictures = {} if self.pictures is None else self.pictures.no_image(negative)
        return {IDENTITY: torch.zeros(1, self.face.identity_dim, device=self.device), **pictures}


def open_face_reader(
    folder: str | None, face: FaceSpec, encoder: ImageEncoder | None, device: torch.device
) -> FaceReader:
    """Look at a face pack; without one the data has the embeddings.

    Raises:
        ModelNotFoundError: no such folder.
        MissingPackageError: no onnxruntime.
        UnreadableFileError, MismatchError: as `load_onnx_pack`.
    """
    pictures = None if encoder is None else PictureReader(encoder)
    if folder is None:
        return FaceReader(None, READY, face, pictures, device)
    pack = find_pack(folder)
    _open(pack)  # what is wrong with it is said before anything is trained; the workers open their own
    return FaceReader(pack, _fingerprint(pack), face, pictures, device)


def find_pack(folder: str, setting: str = "encoder.face_model") -> Path:
    """Raises ModelNotFoundError, MissingPackageError: it is not there, or nothing to run it with.

    Args:
        setting: that names it, for messages.
    """
    try:
        import onnxruntime  # noqa: F401  # optional: only faces need it
    except ImportError as error:
        raise MissingPackageError(
            f"{setting} without the package onnxruntime",
            expected="onnxruntime, which runs a face pack's networks; embeddings that come ready need none",
            action="pip install onnxruntime",
        ) from error
    pack = Path(folder)
    if any(pack.glob("*.onnx")):
        return pack.resolve()
    raise ModelNotFoundError(
        f"{setting} = {folder!r}, a folder without ONNX files"
        if pack.is_dir()
        else f"{setting} = {folder!r}, which is no folder",
        expected="the folder of an unpacked face pack such as buffalo_l, as in ComfyUI's models/insightface/models",
        action=f"correct {setting}, or unpack one there (InsightFace's are for non-commercial research only)",
        more=way_to(f"{pack.name}.zip"),
    )


def _open(pack: Path) -> FaceFinder:
    # onnxruntime alone, also where InsightFace is installed: that would open and run three networks more
    return FaceFinder(pack.name, load_onnx_pack(pack_files(pack), _PROVIDER))


def _finder(pack: Path) -> tuple[FaceFinder, threading.Lock]:
    """The pack as this process has opened it: a session does not survive a fork, and is asked by one thread at a time."""
    key = os.getpid(), pack
    with _opening:
        if key not in _opened:
            _opened[key] = _open(pack), threading.Lock()
        return _opened[key]


def _fingerprint(pack: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for file in pack_files(pack):
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
