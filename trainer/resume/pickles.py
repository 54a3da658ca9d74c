"""Pickles in a checkpoint, which accelerate would open as what they are: programs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from accelerate.utils.other import load

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.file.container import PICKLE_SUFFIXES
from ipadapter_core.file.strangers import strangers

_PICKLES = (".pkl", *PICKLE_SUFFIXES)


def check_pickles(folder: Path, refuse: Callable[[Path, str], IPAdapterError]) -> None:
    """Read those of a folder as tensors and plain numbers, so that accelerate may open them.

    It would run what the schedule's asks for, and go on without generators whose file asks for something.

    Args:
        refuse: makes the error for a file that asks to run code or is damaged, of its path and the reason.
    """
    for path in sorted(path for path in folder.iterdir() if path.suffix in _PICKLES):
        with strangers(partial(refuse, path)):
            load(path, map_location="cpu", mmap=True)
