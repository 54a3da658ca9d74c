"""The contact sheet: a card for each row, with references, results, and bars for the measured similarity."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from demo.rows import UNRELATED, Row, Shown

SIDE, GAP, STEP = 236, 22, 62  # pixels: a picture, between pictures, from references to results
EDGE, CARD, BETWEEN, ROUND = 40, 34, 26, 14
HEAD, TITLE, TEXT, CAPTION, BAR = 92, 60, 30, 40, 30
PAPER, WHITE, LINE, INK, SOFT, TRACK = "#efede6", "#ffffff", "#dedbd1", "#26262a", "#77746c", "#ece9e1"
COLORS = ("#2563c9", "#c2570c")  # of the first and the second reference
TICK = "#a8a498"

Place = tuple[int, int]


def write_sheet(path: Path, title: str, text: str, rows: Sequence[Row], foot: str) -> None:
    """Write rows of pictures as PNG."""
    inner = max(_width(row) for row in rows)
    width = inner + 2 * (CARD + EDGE)
    head_lines, foot_lines = (_wrapped(part, 24, width - 2 * EDGE) for part in (text, foot))
    heights = [_height(row, inner) for row in rows]
    lines = len(head_lines) + len(foot_lines)
    height = HEAD + lines * TEXT + sum(heights) + BETWEEN * (len(rows) + 1) + EDGE
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((EDGE, 26), title, INK, _font(46))
    top = _write_lines(draw, head_lines, 24, (EDGE + 2, HEAD)) + BETWEEN
    for row, row_height in zip(rows, heights, strict=True):
        box = (EDGE, top, width - EDGE - 1, top + row_height)
        draw.rounded_rectangle(box, ROUND + 8, WHITE, LINE, 2)
        _draw_row(sheet, row, (EDGE + CARD, top), inner)
        top += row_height + BETWEEN
    _write_lines(draw, foot_lines, 24, (EDGE + 2, top))
    sheet.save(path, optimize=True)


def _draw_row(sheet: Image.Image, row: Row, place: Place, width: int) -> None:
    draw, (x, y) = ImageDraw.Draw(sheet), place
    draw.text((x, y + 18), row.title, INK, _font(32))
    draw.text((x + width, y + 24), row.file, TICK, _font(22), anchor="ra")
    y = _write_lines(draw, _wrapped(row.text, 22, width), 22, (x, y + TITLE)) + TEXT // 2
    for shown, color in zip(row.references, COLORS, strict=False):
        _draw_picture(sheet, shown, (x, y), color)
        x += SIDE + GAP
    tip, middle = x - GAP + STEP // 2 + 7, y + SIDE // 2
    draw.line([(tip - 12, middle - 14), (tip, middle), (tip - 12, middle + 14)], TICK, 5, joint="curve")
    x += STEP - GAP
    for shown in row.results:
        _draw_picture(sheet, shown, (x, y), LINE)
        _draw_bars(draw, shown.similarities, (x, y + SIDE + CAPTION))
        x += SIDE + GAP


def _draw_picture(sheet: Image.Image, shown: Shown, place: Place, frame: str) -> None:
    """The picture with round corners, its label below."""
    draw, (x, y) = ImageDraw.Draw(sheet), place
    picture = ImageOps.fit(shown.picture, (SIDE, SIDE), Image.Resampling.LANCZOS)
    mask = Image.new("L", (4 * SIDE, 4 * SIDE))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * SIDE - 1, 4 * SIDE - 1), 4 * ROUND, 255)
    sheet.paste(picture, place, mask.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    is_reference = frame != LINE
    width = 5 if is_reference else 2
    draw.rounded_rectangle(
        (x - width, y - width, x + SIDE + width - 1, y + SIDE + width - 1), ROUND + width, None, frame, width
    )
    color = frame if is_reference else INK
    draw.text((x + SIDE // 2, y + SIDE + 24), shown.label, color, _font(22), anchor="mm")


def _draw_bars(draw: ImageDraw.ImageDraw, similarities: Sequence[float], place: Place) -> None:
    """One bar for each reference in its colour, with a tick where unrelated pictures are."""
    x, y = place
    length = SIDE - 58
    for similarity, color in zip(similarities, COLORS, strict=False):
        draw.rounded_rectangle((x, y + 8, x + length, y + 18), 5, TRACK)
        draw.rounded_rectangle((x, y + 8, x + max(10, round(length * similarity)), y + 18), 5, color)
        tick = x + round(length * UNRELATED)
        draw.line((tick, y + 5, tick, y + 21), TICK, 2)
        draw.text((x + SIDE, y + 13), f"{similarity:.2f}", color, _font(22), anchor="rm")
        y += BAR


def _width(row: Row) -> int:
    count = len(row.references) + len(row.results)
    return count * SIDE + (count - 2) * GAP + STEP


def _height(row: Row, width: int) -> int:
    bars = max(len(shown.similarities) for shown in row.results)
    text = len(_wrapped(row.text, 22, width)) * TEXT + TEXT // 2
    return TITLE + text + SIDE + CAPTION + bars * BAR + CARD // 2


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """Lines that are not wider than so many pixels."""
    font, lines = _font(size), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _write_lines(draw: ImageDraw.ImageDraw, lines: Sequence[str], size: int, place: Place) -> int:
    """Returns where the next line would stand."""
    x, y = place
    for line in lines:
        draw.text((x, y), line, SOFT, _font(size))
        y += TEXT
    return y


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
