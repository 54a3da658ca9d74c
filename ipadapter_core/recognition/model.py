"""A face pack in use: how it is opened, and how it finds faces in a picture."""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BadInputError, UnreadableFileError
from ..face.detection import DETECTION_SIZES, Face
from ..file.container import file_status
from ..file.onnx_graph import check_network
from ..file.strangers import strangers
from .onnx import load_onnx_pack

logger = logging.getLogger(__name__)

_CLOSE_UP = 2  # a face that fills its picture is found in a frame of so many times its sides


@dataclass(frozen=True, eq=False)
class FaceFinder:
    """A loaded face pack.

    Attributes:
        name: for messages.
        analysis: InsightFace's `FaceAnalysis`, or what speaks its language.
    """

    name: str
    analysis: Any

    def find(self, picture: Tensor) -> tuple[Face, ...]:
        """Faces in a picture (H, W, 3), uint8, RGB, by falling score; detection sizes are tried from large to small."""
        image = np.ascontiguousarray(picture.numpy()[..., ::-1])  # BGR
        detector = self.analysis.det_model
        for size in _sizes(detector):
            before = {
                name: getattr(detector, name) for name in ("input_size", "input_sizes") if hasattr(detector, name)
            }
            try:
                for name, value in (("input_size", (size, size)), ("input_sizes", [(size, size)])):
                    if name in before:
                        setattr(detector, name, value)
                with strangers(self._unusable):
                    found = self.analysis.get(image)
            finally:
                for name, value in before.items():
                    setattr(detector, name, value)
            if found:
                return tuple(map(_face, found))
        return ()

    def _unusable(self, why: str) -> UnreadableFileError:
        return UnreadableFileError(
            f"face model {self.name}, which fails on a picture ({why})",
            expected="a SCRFD face detector with landmarks and an ArcFace recognition network, as in buffalo_l",
            action="use buffalo_l or antelopev2, or unpack the face pack again",
        )

    def find_close_up(self, picture: Tensor) -> tuple[Face, ...]:
        """As `find`, for a face that fills the picture: it is looked for in a black frame."""
        height, width = picture.shape[:2]
        top, left = (int(side * (_CLOSE_UP - 1) / 2) for side in (height, width))
        framed = torch.nn.functional.pad(picture, (0, 0, left, left, top, top))
        shift = torch.tensor((left, top), dtype=torch.float32)
        return tuple(
            Face(face.box - shift.repeat(2), face.landmarks - shift, face.score, face.embedding)
            for face in self.find(framed)
        )


def open_pack(folder: Path, provider: str) -> tuple[Any, str]:
    """Open the ONNX files of a folder: with InsightFace if it is installed, else with onnxruntime alone.

    Args:
        provider: of onnxruntime, such as "CPUExecutionProvider".

    Returns:
        InsightFace's `FaceAnalysis`, or what speaks its language, and the name of the program.

    Raises:
        MismatchError, UnreadableFileError: a pack that cannot be used.
    """
    readable = pack_files(folder)
    # InsightFace opens all that it finds
    is_ours = importlib.util.find_spec("insightface") is None or len(readable) < len(list(folder.glob("*.onnx")))
    if is_ours:
        return load_onnx_pack(readable, provider), "onnxruntime"
    return _insightface(folder, provider), "insightface"


def pack_files(folder: Path) -> list[Path]:
    """The ONNX files of a pack that may be opened.

    Raises:
        UnreadableFileError: one that may never end.
    """
    readable = [file for file in sorted(folder.glob("*.onnx")) if _is_readable(file)]
    for file in readable:
        check_network(file)
    return readable


def _is_readable(file: Path) -> bool:
    try:
        file_status(file, "face model")
    except UnreadableFileError as error:
        logger.warning("Face model file %s is left out. %s", file.name, error)
        return False
    return True


def _insightface(folder: Path, provider: str) -> Any:
    from insightface.app import FaceAnalysis

    size = DETECTION_SIZES[0]
    with strangers(lambda why: _unusable(folder, why)):
        analysis = FaceAnalysis(name=folder.name, root=str(folder.parents[1]), providers=[provider])
        analysis.prepare(ctx_id=0, det_size=(size, size))
        return analysis


def _unusable(folder: Path, why: str) -> UnreadableFileError:
    # InsightFace asserts without a word that there is a detector
    return UnreadableFileError(
        f"face pack {folder.name}, which InsightFace cannot load ({why.replace('AssertionError', 'it has no detector')})",
        expected="all of its ONNX files, undamaged",
        action=f"unpack {folder.name}.zip again in {folder.parent}",
    )


def _sizes(detector: Any) -> tuple[int, ...]:
    fixed = detector.session.get_inputs()[0].shape[-1]
    return (fixed,) if isinstance(fixed, int) else DETECTION_SIZES


def _face(found: Any) -> Face:
    box, landmarks, embedding = (found.get(name) for name in ("bbox", "kps", "embedding"))
    if landmarks is None or embedding is None:
        raise BadInputError(
            "a face model that gives no landmarks or no embedding",
            expected="a pack with a SCRFD detector and an ArcFace recognition network",
            action="use buffalo_l or antelopev2",
        )
    box, landmarks, embedding = (torch.from_numpy(np.array(value)).float() for value in (box, landmarks, embedding))
    return Face(box, landmarks, float(found["det_score"]), embedding)
