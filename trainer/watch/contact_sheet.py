"""One labelled picture of a sample grid: a row per reference, a column per strength."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ipadapter_core.file.container import write_aside

from ..words import visible
from .sampling import SampleGrid, text_label

SHEET_FILE = "sheet.png"
_CELL, _GAP, _HEAD, _FOOT = 256, 8, 28, 24  # pixels
_PAPER, _INK, _EDGE = "#ffffff", "#222222", "#dddddd"
_FONT_SIZE, _LINE = 15, 38  # pixels, characters
_NAME_BYTES = 80  # file systems take 255, of letters with up to four


def save_grid(grid: SampleGrid, folder: Path) -> list[Path]:
    """Write every picture, and the sheet, as PNG; the sheet comes first in the list."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / SHEET_FILE]
    _save(contact_sheet(grid), paths[0])
    for row, (reference, pictures) in enumerate(zip(grid.references, grid.rows, strict=True)):
        name = _file_name(Path(reference.name).stem)
        if grid.prompts:
            name += f"-{_file_name(text_label(reference.prompt))}"
        for strength, picture in zip(grid.strengths, pictures, strict=True):
            paths.append(folder / f"{row:02d}-{name}-strength-{strength:g}.png")
            _save(picture, paths[-1])
    return paths


def contact_sheet(grid: SampleGrid) -> Image.Image:
    """The references in the first column, then what was drawn from each; labels in black on white."""
    columns = ["reference", *(f"strength {strength:g}" for strength in grid.strengths)]
    step, row_step = _CELL + _GAP, _CELL + _FOOT + _GAP
    sheet = Image.new("RGB", (len(columns) * step + _GAP, _HEAD + len(grid.rows) * row_step + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for column, label in enumerate(columns):
        draw.text((_GAP + column * step, _GAP), label, _INK, font)
    for row, (reference, pictures) in enumerate(zip(grid.references, grid.rows, strict=True)):
        top = _HEAD + _GAP + row * row_step
        for column, picture in enumerate((reference.picture, *pictures)):
            cell = ImageOps.pad(picture.convert("RGB"), (_CELL, _CELL), color=_EDGE)
            sheet.paste(cell, (_GAP + column * step, top))
        draw.text((_GAP, top + _CELL + 3), _cut(reference.name, _LINE), _INK, font)
        if reference.prompt or grid.prompts:
            draw.text(
                (_GAP + step, top + _CELL + 3), _cut(text_label(reference.prompt), _LINE * len(pictures)), _INK, font
            )
    return sheet


def _save(picture: Image.Image, path: Path) -> None:
    """Aside and renamed: a report made after a kill meets no half file."""
    write_aside(path, lambda part: picture.save(part, "PNG"))


def _cut(text: str, length: int) -> str:
    text = visible(" ".join(text.split()))
    return text if len(text) <= length else text[: length - 1] + "…"


def _file_name(name: str) -> str:
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:60]
    return name.encode()[:_NAME_BYTES].decode(errors="ignore")
