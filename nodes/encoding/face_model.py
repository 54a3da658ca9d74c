"""Face models: where their files lie, how one is loaded, and how it finds faces in a picture."""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from torch import Tensor

from ...ipadapter_core.errors import BadInputError, IPAdapterError, UnreadableFileError, one_of
from ...ipadapter_core.face.detection import DETECTION_SIZES, Face
from ...ipadapter_core.file.container import file_status
from ...ipadapter_core.file.onnx_graph import check_network
from ...ipadapter_core.file.published import way_to
from ...ipadapter_core.file.strangers import strangers
from ..paths import fingerprint
from .encoder import identity_of, remember
from .face_onnx import load_onnx_pack

logger = logging.getLogger(__name__)

FOLDER = "insightface"
USUAL_PACKS = ("buffalo_l", "antelopev2")
# Execution providers of onnxruntime, by the names users know.
PROVIDERS = {
    "CPU": "CPUExecutionProvider",
    "CUDA": "CUDAExecutionProvider",
    "ROCM": "ROCMExecutionProvider",
    "DirectML": "DmlExecutionProvider",
    "OpenVINO": "OpenVINOExecutionProvider",
    "CoreML": "CoreMLExecutionProvider",
}
LICENCE = "InsightFace's packs are for non-commercial research only"
_CLOSE_UP = 2  # a face that fills its picture is found in a frame of so many times its sides


class FaceModelMissingError(IPAdapterError):
    """No program or no files to recognise faces with."""


@dataclass(frozen=True, eq=False)
class FaceModel:
    """A loaded face model.

    Attributes:
        name: for messages.
        analysis: InsightFace's `FaceAnalysis`, or what speaks its language.
    """

    name: str
    analysis: Any

    @property
    def identity(self) -> str:
        """Changes when the files may have changed; part of cache keys."""
        return identity_of(self.analysis)

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


def packs() -> dict[str, Path]:
    """Folders with ONNX files in `models/insightface/models`, by name."""
    roots = folder_paths.folder_names_and_paths.get(FOLDER, ([],))[0] or []
    found: dict[str, Path] = {}
    for root in (*map(Path, roots), Path(folder_paths.models_dir) / FOLDER):
        for folder in sorted((root / "models").glob("*")):
            if any(folder.glob("*.onnx")):
                found.setdefault(folder.name, folder)
    return found


def pack_fingerprint(pack: str | None) -> str:
    """Changes when a file of the pack does; of any pack where it is not known yet, as with a linked input."""
    folders = [folder for name, folder in packs().items() if pack in (name, None)]
    return fingerprint(file for folder in folders for file in sorted(folder.glob("*.onnx")))


def pack_folder(pack: str) -> Path:
    """Where a pack lies.

    Raises:
        FaceModelMissingError: it is not there, or no program to run it with.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise FaceModelMissingError(
            "neither InsightFace nor onnxruntime is installed",
            expected="one of them, to recognise faces",
            action="install one in ComfyUI's Python, with 'pip install onnxruntime' (enough) or 'pip install insightface'"
            f", and restart. {LICENCE}",
        )
    folder = packs().get(pack)
    if folder is None:
        place = Path(folder_paths.models_dir) / FOLDER / "models" / str(pack)
        way = way_to(f"{pack}.zip")
        what_to_do = (
            f"download {pack}.zip and unpack it there" if way else f"unpack it there, or choose {USUAL_PACKS[0]}"
        )
        raise FaceModelMissingError(
            f"no face pack {pack}",
            expected=f"its ONNX files in {place}",
            action=f"{what_to_do}. {LICENCE}",
            more=way,
        )
    return folder


def load_face_model(pack: str, device: str) -> FaceModel:
    """Load a face pack: with InsightFace if it is installed, else with onnxruntime alone.

    Args:
        pack: name of a folder in `models/insightface/models`.
        device: a key of `PROVIDERS`.

    Raises:
        FaceModelMissingError: neither program is installed, or the pack is not there.
        MismatchError, UnreadableFileError: a pack that cannot be used.
    """
    folder = pack_folder(pack)
    provider = _provider(device)
    files = sorted(folder.glob("*.onnx"))
    identity = fingerprint(files) + provider
    readable = [file for file in files if _is_readable(file)]
    for file in readable:
        check_network(file)
    # InsightFace opens all that it finds
    is_ours = importlib.util.find_spec("insightface") is None or len(readable) < len(files)
    analysis = load_onnx_pack(readable, provider) if is_ours else _insightface(folder, provider)
    remember(analysis, f"{identity} {'onnxruntime' if is_ours else 'insightface'}")
    return FaceModel(pack, analysis)


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


def _provider(device: str) -> str:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    provider = one_of(device, PROVIDERS, "provider")
    if provider in available:
        return provider
    logger.warning(
        "Faces are recognised on the CPU: this onnxruntime has no %s (it has %s).", provider, ", ".join(available)
    )
    return PROVIDERS["CPU"]


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
