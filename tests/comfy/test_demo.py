"""The demo does the main job and says plainly what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from demo import graph
from demo.checks import check
from demo.client import Client
from demo.run import read_picture
from demo.server import ROOT
from support.graphs import ADAPTERS

pytest_plugins = ["support.server"]

PLAIN = torch.tensor([2.0, -4.0])


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "demo.run", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.slow
def test_it_holds_and_writes_the_sheet(tmp_path: Path):
    done = demo("--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("yes") == 3
    assert "NO" not in done.stdout
    assert "strength 0.5: 4 steps" in done.stderr
    with Image.open(tmp_path / "demo.png") as sheet:
        assert sheet.width > 3 * sheet.height


@pytest.mark.parametrize(
    ("latents", "reference", "holds"),
    [
        ({0.0: PLAIN, 0.5: PLAIN * 1.1, 1.0: PLAIN * 1.2}, PLAIN * 1.2, [True, True, True]),
        ({0.0: PLAIN * (1 + 1e-6), 0.5: PLAIN * 1.1, 1.0: PLAIN * 1.2}, None, [False, True]),
        ({0.0: PLAIN, 0.5: PLAIN * 1.2, 1.0: PLAIN * 1.2}, None, [True, False]),
        ({0.0: PLAIN, 0.5: PLAIN * 1.1, 1.0: PLAIN * 1.2}, PLAIN * 1.201, [True, True, False]),
        ({0.0: PLAIN, 0.5: PLAIN * torch.nan, 1.0: PLAIN * torch.nan}, PLAIN, [True, False, False]),
    ],
)
def test_each_claim_can_fail(
    latents: dict[float | None, torch.Tensor], reference: torch.Tensor | None, holds: list[bool]
):
    assert [entry.holds for entry in check({None: PLAIN, **latents}, reference)] == holds


@pytest.mark.parametrize(
    ("content", "message"), [(None, "there is no file"), (b"no picture", "is not a picture that can be read")]
)
def test_a_bad_picture_is_named(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "[photo].jpg"  # brackets: no markup to the terminal
    if content is not None:
        path.write_bytes(content)
    done = demo("--image", str(path), "--output", str(tmp_path))
    assert done.returncode == 1
    assert message in done.stderr
    assert "[photo].jpg" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_photograph_is_turned_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.new("RGB", (40, 20)).save(tmp_path / "photo.jpg", exif=exif)
    assert read_picture(tmp_path / "photo.jpg").size == (20, 40)


def test_own_models_come_in_pairs():
    done = demo("--checkpoint", "x.safetensors")
    assert done.returncode == 2
    assert "--checkpoint and --adapter go together" in done.stderr


def test_an_unknown_name_is_answered_with_the_known_ones(client: Client):
    with pytest.raises(graph.UnknownFileError, match="no adapter x") as caught:
        graph.build(client, "v1-5-pruned-emaonly-fp16.safetensors", "x.safetensors")
    assert ADAPTERS[0] in str(caught.value)
