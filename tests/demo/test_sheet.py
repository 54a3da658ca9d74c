"""The contact sheet, its page, what is checked for them, and the files `--install` copies."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from demo import checks, rows
from demo.checks import Check
from demo.install import SAVED, InstallError, install
from demo.page import write_page
from demo.references import FILES, path_of
from demo.rows import Row, Shown
from demo.scenes import SCENES
from demo.sheet import SIDE, write_sheet
from demo.workflows import build

PLAIN = torch.tensor([2.0, -4.0])
BLACK, WHITE = Image.new("RGB", (64, 64)), Image.new("RGB", (96, 64), "white")
ROW = Row(
    "One & <two>",
    "one.json",
    "A text that is a good deal longer than the narrow sheet is wide, so that it takes several lines.",
    (Shown("first", BLACK), Shown("second", WHITE)),
    (Shown("half", WHITE, (0.5, -0.1)),),
)


class Twins:
    """A judge to whom pictures are their mean colour."""

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        values = (sum(picture.resize((1, 1)).getpixel((0, 0))) / 765 for picture in pictures)
        return torch.tensor([[value, 1 - value] for value in values])


@pytest.mark.parametrize(
    ("latents", "holds"),
    [
        ({0.0: PLAIN, 0.5: PLAIN * 1.1, 1.0: PLAIN * 1.2}, [True, True]),
        ({0.0: PLAIN * (1 + 1e-6), 0.5: PLAIN * 1.1, 1.0: PLAIN * 1.2}, [False, True]),
        ({0.0: PLAIN, 0.5: PLAIN * 1.2, 1.0: PLAIN * 1.2}, [True, False]),
        ({0.0: PLAIN, 0.5: PLAIN * torch.nan, 1.0: PLAIN * torch.nan}, [True, False]),
    ],
)
def test_each_claim_about_strength_can_fail(latents: dict[float | None, Tensor], holds: list[bool]):
    assert [entry.holds for entry in checks.arithmetic({None: PLAIN, **latents})] == holds


@pytest.mark.parametrize(("factor", "holds"), [(1.0, True), (1 + 1e-5, True), (1.001, False), (torch.nan, False)])
def test_the_claim_about_diffusers_can_fail(factor: float, holds: bool):
    assert checks.same_as_diffusers(PLAIN * factor, PLAIN).holds == holds


@pytest.mark.parametrize(("similarities", "holds"), [((0.4, 0.3, 0.7), True), ((0.4, 0.9, 0.4), False)])
def test_the_claim_about_likeness_can_fail(similarities: tuple[float, ...], holds: bool):
    assert checks.nearer_with_strength(similarities).holds == holds


@pytest.mark.parametrize(
    ("sides", "holds"),
    [
        ([[(0.8, 0.4)], [(0.3, 0.5)]], True),
        ([[(0.8, 0.4)], [(0.5, 0.3)]], False),
        ([[(0.4, 0.8)], [(0.3, 0.5)]], False),
        ([[(0.4, 0.5), (0.9, 0.3)], [(0.3, 0.5), (0.3, 0.5)]], True),
    ],
)
def test_the_claim_about_halves_can_fail(sides: list[list[tuple[float, float]]], holds: bool):
    assert checks.halves_apart(sides).holds == holds


def test_halves_are_compared_with_the_same_half():
    halved = BLACK.copy()
    halved.paste(WHITE.resize((32, 64)), (32, 0))
    left, right = rows.halves(Twins(), [halved, WHITE], [halved])
    assert left == [(1.0, 0.0)]
    assert right == [(1.0, 1.0)]


def test_a_sheet_is_as_wide_as_its_widest_row(tmp_path: Path):
    sizes = []
    for results in (1, 4):
        row = Row(ROW.title, ROW.file, ROW.text, ROW.references, ROW.results * results)
        write_sheet(tmp_path / "demo.png", "Title", "text", [row], "foot")
        with Image.open(tmp_path / "demo.png") as sheet:
            sizes.append(sheet.size)
    (narrow, high), (wide, low) = sizes
    assert wide - narrow > 3 * SIDE
    assert high > low  # its text takes more lines


def test_a_page_needs_nothing_else(tmp_path: Path):
    write_page(tmp_path / "demo.html", "Title", "text", [ROW], [Check("x < y", "3", False)], "foot")
    html = (tmp_path / "demo.html").read_text()
    assert html.count('<img src="data:image/png;base64,') == 3
    assert re.findall(r'(?:src|href)="(?!data:)|https?:|<script|@import|url\(', html) == []
    assert "One &amp; &lt;two&gt;" in html
    assert "x &lt; y" in html
    assert 'class="no">NO' in html


def test_every_scene_fills_six_places():
    assert {len(scene.references) + len(scene.labels) for scene in SCENES} == {6}
    assert {file for scene in SCENES for file in scene.references} <= set(FILES)
    assert [path_of(file) for file in FILES if not path_of(file).is_file()] == []


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_a_workflow_is_what_the_table_says(scene):
    """After a change there: python -m demo.workflows."""
    assert scene.path.read_text(encoding="utf-8") == build(scene).text()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    for file in ("checkpoints/world.safetensors", "clip_vision/encoder/config.json", "ipadapter/plus.safetensors"):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text(file)
    (folder / "diffusers").mkdir()
    (folder / "diffusers" / "unet").touch()
    return folder


def test_install_copies_what_is_not_there(models: Path, tmp_path: Path):
    comfyui = tmp_path / "comfyui"
    copied = install(models, comfyui)
    assert len(copied) == 3 + len(FILES) + len(SCENES)
    assert sorted(path.name for path in (comfyui / SAVED).iterdir()) == sorted(scene.path.name for scene in SCENES)
    assert (comfyui / "models/clip_vision/encoder/config.json").read_text() == "clip_vision/encoder/config.json"
    assert (comfyui / "input" / FILES[0]).read_bytes() == path_of(FILES[0]).read_bytes()
    assert not (comfyui / "models" / "diffusers").exists()
    copied[0].unlink()
    assert install(models, comfyui) == copied[:1]


def test_install_overwrites_nothing(models: Path, tmp_path: Path):
    mine = tmp_path / "comfyui" / "input" / FILES[0]
    mine.parent.mkdir(parents=True)
    mine.write_text("my picture")
    with pytest.raises(InstallError, match=FILES[0]):
        install(models, tmp_path / "comfyui")
    assert [path for path in (tmp_path / "comfyui").rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "my picture"
