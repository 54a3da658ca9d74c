"""The demo's models on disk, written once for each state of what they are made from."""

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two at once are the user's to avoid
    fcntl = None  # type: ignore[assignment]


DEMO = Path(__file__).resolve().parent

# The trained models, below the models folder.
CHECKPOINT = "checkpoints/demo_world.safetensors"
DIFFUSERS = "diffusers/demo_world"  # the same base as diffusers reads it
ENCODER = "clip_vision/demo_encoder"
PLUS_ADAPTER = "ipadapter/demo_plus.safetensors"
BASE_ADAPTER = "ipadapter/demo_base.safetensors"


class ModelsError(RuntimeError):
    """The demo's models could not be written."""


def tiny_models() -> Path:
    """A models folder with everything `tiny_base` makes, in the cache that scripts/env.sh uses: random, made at once.

    Raises:
        ModelsError: they could not be written.
    """
    return _made("tiny-models", "demo.tiny_base", (DEMO / "tiny_base.py",))


def demo_models() -> Path:
    """A models folder with the trained models of the demo, put together by `assemble` in the same cache.

    The environment variable IPADAPTER_STUDIO_DEMO_MODELS names a folder to use in its place.

    Raises:
        ModelsError: they could not be written.
    """
    if given := os.environ.get("IPADAPTER_STUDIO_DEMO_MODELS"):
        return Path(given)
    sources = [
        DEMO / "assemble.py",
        DEMO / "tiny_base.py",
        *(DEMO / "world" / name for name in ("base.py", "pack.py", "text.py")),
    ]
    return _made("demo-models", "demo.assemble", (*sources, *sorted((DEMO / "assets").rglob("*.*"))))


def _made(name: str, module: str, sources: Iterable[Path]) -> Path:
    """The folder that `python -m module FOLDER` fills, once for each state of the files it depends on."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    folder = cache_folder() / f"{name}-{digest.hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "lock"):
        if not (folder / "complete").exists():
            _write(module, folder)
            (folder / "complete").touch()
    return folder


def _write(module: str, folder: Path) -> None:
    """In a process of its own: ComfyUI's modules are imported there, and importing torch takes seconds."""
    command = [sys.executable, "-m", module, str(folder)]
    done = subprocess.run(command, cwd=DEMO.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ModelsError(f"the demo's models could not be written:\n{done.stderr[-2000:]}")


def cache_folder() -> Path:
    """Of scripts/env.sh."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("IPADAPTER_STUDIO_CACHE") or f"{base}/ipadapter-studio")


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
