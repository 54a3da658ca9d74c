"""demo.html: the contact sheet as one page that needs nothing else, and what was checked."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import jinja2
from PIL import Image, ImageOps

from demo.checks import Check
from demo.rows import UNRELATED, Row

SIDE = 256  # pixels of an embedded picture


def write_page(path: Path, title: str, text: str, rows: Sequence[Row], checks: Sequence[Check], foot: str) -> None:
    """Write the page; pictures are embedded."""
    loader = jinja2.FileSystemLoader(Path(__file__).with_name("templates"))
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["uri"] = _uri
    page = environment.get_template("demo.html.j2")
    html = page.render(title=title, text=text, rows=rows, checks=checks, foot=foot, unrelated=UNRELATED)
    path.write_text(html, encoding="utf-8")


def _uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
