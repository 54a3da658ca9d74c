"""Faces without InsightFace: its ONNX files (SCRFD and ArcFace), run by onnxruntime with our own alignment.

Speaks the part of InsightFace's `FaceAnalysis` that packs for faces use, so that either may be on an INSIGHTFACE socket.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import MismatchError, UnreadableFileError
from ..face.align import align_face
from ..face.detection import DETECTION_SIZES, detector_input, read_detections
from ..file.strangers import strangers

_PICTURE_AXES = 4
_DETECTOR_OUTPUTS = 9  # scores, boxes and landmarks at three strides
_RECOGNISER_SIDE = 112  # pixels
_MEAN = _STD = 127.5


class AnalysedFace(dict[str, Any]):
    """A face as InsightFace gives it: a dictionary whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


@dataclass
class Detector:
    """A SCRFD network and the size of its input in pixels, as other packs set it."""

    session: Any
    input_size: tuple[int, int] = (DETECTION_SIZES[0], DETECTION_SIZES[0])


class OnnxFaceAnalysis:
    """Finds and recognises faces with two ONNX sessions."""

    def __init__(self, detector: Any, recogniser: Any) -> None:
        self.det_model = Detector(detector)
        self._recogniser = recogniser

    def prepare(self, ctx_id: int = 0, det_thresh: float = 0.5, det_size: tuple[int, int] = (640, 640)) -> None:
        """Set the size of the detector's input; the other arguments are those of InsightFace, and do nothing."""
        self.det_model.input_size = det_size

    def get(self, img: np.ndarray, max_num: int = 0) -> list[AnalysedFace]:
        """Faces by falling score.

        Args:
            img: (H, W, 3), uint8, BGR.
            max_num: at most so many; 0 is all.
        """
        picture = torch.from_numpy(np.ascontiguousarray(img[..., ::-1]))
        side = self.det_model.input_size[0]
        pixels, scale = detector_input(picture, side)
        found = read_detections([torch.from_numpy(out) for out in _run(self.det_model.session, pixels)], side, scale)
        faces = []
        for box, landmarks, score in zip(found.boxes, found.landmarks, found.scores, strict=True):
            crop = align_face(picture, landmarks, _RECOGNISER_SIDE)
            (embedding,) = _run(self._recogniser, (crop.movedim(-1, 0)[None].float() - _MEAN) / _STD)
            vector = embedding.reshape(-1)
            faces.append(
                AnalysedFace(
                    bbox=box.numpy(),
                    kps=landmarks.numpy(),
                    det_score=float(score),
                    embedding=vector,
                    normed_embedding=vector / np.linalg.norm(vector),
                )
            )
        return faces[:max_num] if max_num else faces


def load_onnx_pack(files: Iterable[Path], provider: str) -> OnnxFaceAnalysis:
    """Find the detector and the recogniser among ONNX files, by what they take and give.

    Args:
        provider: of onnxruntime, such as "CPUExecutionProvider".

    Raises:
        UnreadableFileError: a file onnxruntime cannot read.
        MismatchError: one of the two is missing.
    """
    found: dict[str, Any] = {}
    for file in sorted(files):
        session = _open(file, provider)
        kind = _kind(session)
        if kind is not None:
            found.setdefault(kind, session)
    missing = [kind for kind in ("detector", "recogniser") if kind not in found]
    if missing:
        raise MismatchError(
            f"ONNX files without a {' and a '.join(missing)}",
            expected="a SCRFD face detector with landmarks and an ArcFace recognition network, as in buffalo_l",
            action="unpack the whole face pack into its folder",
        )
    return OnnxFaceAnalysis(found["detector"], found["recogniser"])


def _kind(session: Any) -> str | None:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    if len(outputs) == _DETECTOR_OUTPUTS and len(shape) == _PICTURE_AXES:
        return "detector"
    is_recogniser = len(outputs) == 1 and len(outputs[0].shape) == 2 and list(shape[1:]) == [3, *[_RECOGNISER_SIDE] * 2]
    return "recogniser" if is_recogniser else None


def _open(file: Path, provider: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    providers = list(dict.fromkeys((provider, "CPUExecutionProvider")))
    with strangers(lambda why: _unusable(file, why)):
        return onnxruntime.InferenceSession(str(file), options, providers=providers)


def _unusable(file: Path, why: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"{file.name}, which onnxruntime cannot read ({why})",
        expected="an ONNX network",
        action="unpack the face pack again",
    )


def _run(session: Any, pixels: torch.Tensor) -> list[np.ndarray]:
    outputs: list[np.ndarray] = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    return outputs
