"""The contact sheet: pictures in a row, a line of text under each."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

SIDE, GAP, LABEL = 256, 12, 34  # pixels
PAPER, INK = (250, 249, 246), (40, 40, 40)


def write_sheet(path: Path, pictures: Sequence[tuple[str, Image.Image]]) -> None:
    """Write labelled pictures side by side as PNG."""
    sheet = Image.new("RGB", (GAP + len(pictures) * (SIDE + GAP), SIDE + LABEL + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for column, (label, picture) in enumerate(pictures):
        left = GAP + column * (SIDE + GAP)
        enlarge = Image.Resampling.NEAREST if picture.width < SIDE else Image.Resampling.LANCZOS
        sheet.paste(ImageOps.fit(picture.convert("RGB"), (SIDE, SIDE), enlarge), (left, GAP))
        draw.text((left + SIDE // 2, GAP + SIDE + LABEL // 2 - 4), label, INK, font, anchor="mm")
    sheet.save(path)
