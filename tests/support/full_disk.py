"""Disks that refuse a write."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from .crash import WRITES

REFUSALS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "gone": errno.ESTALE, "broken": errno.EIO}


@contextmanager
def refusing(number: int, why: str, *, of: Callable[[FrameType], bool] = lambda _: True) -> Iterator[list[int]]:
    """Inside, the write of a number (of those made from Python) fails; gives a list whose length says how many came."""
    code, came = REFUSALS[why], []

    def refuse(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in WRITES and of(frame):
            came.append(0)
            if len(came) == number + 1:
                raise OSError(code, os.strerror(code))

    sys.setprofile(refuse)
    try:
        yield came
    finally:
        sys.setprofile(None)
