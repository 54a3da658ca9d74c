"""The demo does the main job and says plainly what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from demo.server import ROOT


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "demo.run", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.slow
def test_it_holds_and_writes_the_sheet(tmp_path: Path) -> None:
    done = demo("--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("yes") == 3
    assert "NO" not in done.stdout
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.width > 3 * sheet.height


@pytest.mark.parametrize(
    ("content", "message"), [(None, "there is no file"), (b"no picture", "is not a picture that can be read")]
)
def test_a_bad_picture_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    done = demo("--image", str(path), "--output", str(tmp_path))
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_own_models_come_in_pairs() -> None:
    done = demo("--checkpoint", "x.safetensors")
    assert done.returncode == 2
    assert "--checkpoint and --adapter go together" in done.stderr
