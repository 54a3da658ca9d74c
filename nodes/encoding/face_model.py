"""Face models: where their files lie, and how one is loaded."""

import importlib.util
import logging
from pathlib import Path

import folder_paths

from ...ipadapter_core.errors import IPAdapterError, one_of
from ...ipadapter_core.file.published import way_to
from ...ipadapter_core.recognition.model import FaceFinder, open_pack
from ..paths import fingerprint
from .encoder import identity_of, remember

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


class FaceModelMissingError(IPAdapterError):
    """No program or no files to recognise faces with."""


class FaceModel(FaceFinder):
    """A loaded face model."""

    @property
    def identity(self) -> str:
        """Changes when the files may have changed; part of cache keys."""
        return identity_of(self.analysis)


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
    identity = fingerprint(sorted(folder.glob("*.onnx"))) + provider
    analysis, program = open_pack(folder, provider)
    remember(analysis, f"{identity} {program}")
    return FaceModel(pack, analysis)


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
