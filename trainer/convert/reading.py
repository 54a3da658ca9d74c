"""Opening what trainers leave behind, without running code from it."""

import os
from pathlib import Path

import torch

from ipadapter_core.file.container import TensorFile, read_tensors

from .errors import ConvertError

# In a folder, the first that is there. A pickled accelerate state is complete, its safetensors lack shared tensors.
STATE_FILES = (
    "pytorch_model.bin",
    "model.safetensors",
    "pytorch_model/mp_rank_00_model_states.pt",  # DeepSpeed
    "ip_adapter.safetensors",
    "ip_adapter.bin",
)
# mmengine keeps its log beside the weights: objects, their methods and numpy arrays. Each of these names is given an
# empty shell, so that nothing of what it stands for is called (`getattr` neither).
_SHELLS = (
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.logging.message_hub.MessageHub",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.dtypes.Float64DType",
    "numpy.dtypes.Int64DType",
)


class _Shell:
    """Stands for an object whose content nobody needs."""

    def __new__(cls, *_arguments: object) -> "_Shell":
        return super().__new__(cls)

    def __setstate__(self, _state: object) -> None:
        pass


def find_state(path: Path) -> Path:
    """The weight file a path means: itself, or the one in a training state's folder.

    Raises:
        ConvertError: a folder without one.
    """
    if not os.path.isdir(path):
        return path
    found = next((path / name for name in STATE_FILES if os.path.isfile(path / name)), None)
    if found is not None:
        return found
    try:
        inside = sorted(folder.name for folder in path.iterdir() if os.path.isdir(folder) and is_state_folder(folder))
    except OSError as error:
        raise ConvertError(
            f"the folder {path} cannot be looked into ({error.strerror})",
            expected=f"a folder with one of {', '.join(STATE_FILES)}",
            action="let yourself read it, or name the weight file",
        ) from error
    raise ConvertError(
        f"the folder {path} has no weights"
        + (f" itself, but training states: {', '.join(inside[:4])}" if inside else ""),
        expected=f"a folder with one of {', '.join(STATE_FILES)}",
        action=f"choose one, such as {path / inside[-1]}" if inside else "name the weight file",
    )


def is_state_folder(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in STATE_FILES)


def read_state(path: Path) -> TensorFile:
    """Tensors of a file or of a state's folder under flat names, and metadata.

    Raises:
        ConvertError, UnreadableFileError: as `find_state` and `read_tensors`.
    """
    with torch.serialization.safe_globals([(_Shell, name) for name in _SHELLS]):
        return read_tensors(find_state(path))
