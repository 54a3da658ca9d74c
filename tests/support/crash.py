"""Processes that die at a write."""

import os
import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

# What changes a disk, by the names of Python's and of the libraries' own functions. A torch file grows record by record;
# at its end it is still without its directory.
WRITES = {
    *("open", "rename", "replace", "mkdir", "unlink", "rmdir", "fsync"),
    *("writelines", "serialize_file", "serialize", "write_end_of_file"),
}
DIED, NEVER = 9, sys.maxsize


def die_before_write(number: int, action: Callable[[], object]) -> int:
    """Run something in a copy of this process, which ends before the write of a number; its exit code.

    A copy has one thread: more may not have been started by torch.
    """
    child = os.fork()
    if child == 0:
        left = number

        def count(frame: FrameType, event: str, function: Any) -> None:
            nonlocal left
            if event == "c_call" and function.__name__ in WRITES:
                if left == 0:
                    os._exit(DIED)
                left -= 1

        random.seed(0)  # Python seeds a copy of a process anew, and a checkpoint holds the generator's state
        status = 1
        sys.setprofile(count)
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    _, waited = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(waited)
