"""The most memory this process held while something ran, as the system counts it."""

import ctypes
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_CLEAR = Path("/proc/self/clear_refs")
_UNIT = 1 if sys.platform == "darwin" else 1024


def free_memory() -> None:
    """Give back what was freed: a heap kept for later hides what the next one takes."""
    trim: Callable[[int], Any] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def reset_peak() -> int:
    """Let the peak begin anew from what is held now, where the system can (Linux); the peak, in bytes."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")
    return peak()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


def resident() -> int:
    """Bytes that are held now; Linux alone says it."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize()
