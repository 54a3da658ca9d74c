"""Pickles in a checkpoint, which accelerate and torch would open as what they are: programs."""

import importlib
import importlib.util
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.other import load

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.file.container import PICKLE_SUFFIXES
from ipadapter_core.file.header import DTYPES
from ipadapter_core.file.strangers import reason_of, strangers

Refuse = Callable[[Path, str], IPAdapterError]
_PICKLES = (".pkl", *PICKLE_SUFFIXES)
_PARTS = ".metadata"  # beside the parts of FSDP: which tensor lies where
_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_PATHS = frozenset({"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"})
# What such a list is made of, by module; nothing of it does anything.
_OF_PARTS = {
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
            *("TensorProperties", "ChunkStorageMetadata", "_MEM_FORMAT_ENCODING"),
        }
    ),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.serialization": frozenset({"_get_layout"}),
    "torch": frozenset({"Size", *(str(dtype).removeprefix("torch.") for dtype in DTYPES.values())}),
    "collections": frozenset({"OrderedDict"}),
    **dict.fromkeys(("pathlib", "pathlib._local"), _PATHS),
}
_OF_DEEPSPEED = (
    ("runtime.fp16.loss_scaler", "LossScaler"),
    ("runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("runtime.zero.config", "ZeroStageEnum"),
    ("utils.tensor_fragment", "fragment_address"),
)


def check_pickles(folder: Path, refuse: Refuse) -> None:
    """Read those of a folder as tensors and plain numbers, so that accelerate may open them.

    It would run what the schedule's asks for, and go on without generators whose file asks for something.

    Args:
        refuse: makes the error for a file that asks to run code or is damaged, of its path and the reason.
    """
    for path in sorted(path for path in folder.iterdir() if path.suffix in _PICKLES):
        with strangers(partial(refuse, path)):
            load(path, map_location="cpu", mmap=True)
    for path in sorted(folder.rglob(_PARTS)):
        with strangers(partial(refuse, path)), path.open("rb") as file:
            _Parts(file).load()


def _of_deepspeed() -> list[Any]:
    """The classes in its states, if it is here: how far a scaler is, where a tensor lies, and what it is told."""
    if importlib.util.find_spec("deepspeed") is None:
        return []
    return [getattr(importlib.import_module(f"deepspeed.{module}"), name) for module, name in _OF_DEEPSPEED]


class _Parts(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _OF_PARTS.get(module, ()):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


@contextmanager
def tensors_only(folder: Path, refuse: Refuse) -> Iterator[None]:
    """Inside, torch reads all pickles as tensors and plain numbers: FSDP and DeepSpeed tell it otherwise.

    Arguments and errors as `check_pickles`.
    """
    from torch.distributed.checkpoint.api import CheckpointException  # not every build of torch has it

    before = os.environ.get(_FORCED)
    os.environ[_FORCED] = "1"
    try:
        with torch.serialization.safe_globals(_of_deepspeed()):
            yield
    except pickle.UnpicklingError as error:
        raise refuse(folder, reason_of(error)) from error
    except CheckpointException as error:
        reasons = {reason_of(reason) for reason, _ in error.failures.values()}
        raise refuse(folder, "; ".join(sorted(reasons))) from error
    finally:
        if before is None:
            del os.environ[_FORCED]
        else:
            os.environ[_FORCED] = before
