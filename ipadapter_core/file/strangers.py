"""Other people's libraries, met with other people's files: whatever they raise becomes one message of ours."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from ..errors import IPAdapterError

LONGEST_REASON = 300  # characters


@contextmanager
def strangers(refuse: Callable[[str], IPAdapterError]) -> Iterator[None]:
    """Let a library read a file; what it raises goes into the error that `refuse` makes of a reason.

    What is raised by us, and a device's lack of memory, which is not the file's fault, pass through.
    """
    try:
        yield
    except (IPAdapterError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise refuse(reason_of(error)) from error


def reason_of(error: BaseException) -> str:
    """An error of another program in words: its first line, shortened."""
    if isinstance(error, pickle.UnpicklingError | ValueError | RuntimeError | OSError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]} …"
