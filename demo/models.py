"""The tiny models on disk, written once for each state of `tiny_base.py`."""

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two at once are the user's to avoid
    fcntl = None  # type: ignore[assignment]


class ModelsError(RuntimeError):
    """The tiny models could not be written."""


def tiny_models() -> Path:
    """A models folder with everything `tiny_base` makes, in the cache that scripts/env.sh uses.

    Raises:
        ModelsError: they could not be written.
    """
    source = Path(__file__).with_name("tiny_base.py")  # not imported here: that takes seconds
    folder = _cache() / f"tiny-models-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "lock"):
        if not (folder / "complete").exists():
            _write(folder)
            (folder / "complete").touch()
    return folder


def _write(folder: Path) -> None:
    """In a process of its own: ComfyUI's modules are imported there."""
    command = [sys.executable, "-m", "demo.tiny_base", str(folder)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ModelsError(f"the tiny models could not be written:\n{done.stderr[-2000:]}")


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("IPADAPTER_STUDIO_CACHE") or f"{base}/ipadapter-studio")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
