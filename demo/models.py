"""The tiny models on disk, written once for each state of `tiny_base.py`."""

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from demo import tiny_base

try:
    import fcntl
except ImportError:  # Windows: two at once are the user's to avoid
    fcntl = None  # type: ignore[assignment]


def tiny_models() -> Path:
    """A models folder with everything `tiny_base` makes, in the cache that scripts/env.sh uses."""
    source = Path(tiny_base.__file__)
    folder = _cache() / f"tiny-models-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "lock"):
        # In a process of its own: ComfyUI's modules are imported there.
        subprocess.run(
            [sys.executable, "-m", "demo.tiny_base", str(folder)],
            cwd=source.parents[1],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    return folder


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("IPADAPTER_STUDIO_CACHE") or f"{base}/ipadapter-studio")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
