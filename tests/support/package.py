"""The registry package, as comfy-cli makes it of the checkout."""

import io
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACK = "import sys; from comfy_cli.file_utils import zip_files; zip_files(sys.argv[1])"


@cache
def package() -> bytes:
    """The zip file. `comfy node pack` would write it into the checkout."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "node.zip"
        subprocess.run([sys.executable, "-c", PACK, str(path)], cwd=ROOT, check=True, timeout=120)
        return path.read_bytes()


@cache
def packed_files() -> frozenset[str]:
    with zipfile.ZipFile(io.BytesIO(package())) as archive:
        return frozenset(archive.namelist())


def is_packed(path: str) -> bool:
    """Whether a file or folder of the checkout is in the package."""
    return any(name == path or name.startswith(f"{path.rstrip('/')}/") for name in packed_files())
