"""What the adapters are taught: a list for `ipadapter train` of targets, references and captions.

Only emoji outside the held-out set are in it.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from .lessons import captions_of
from .pictures import OTHER_STYLE, Picture


def write_pairs(pictures: list[Picture], folder: str, path: Path) -> None:
    """Write the list as JSON lines.

    Args:
        folder: of the pictures, as seen from the list.
    """
    rows = ({"image_file": f"{folder}/{t}", "reference": f"{folder}/{r}", "text": c} for t, r, c in pairs(pictures))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def pairs(pictures: list[Picture]) -> Iterator[tuple[str, str, str]]:
    """(target file, reference file, caption), three for each picture.

    Without a text the reference is redrawn as it is; the category goes with that. A style word alone asks for the
    reference's content in that style: there target and reference differ where an emoji has both styles.
    """
    files = {(picture.code, picture.style): picture.file for picture in pictures}
    for picture in pictures:
        if not picture.is_held_out:
            captions = captions_of(picture)
            yield picture.file, picture.file, captions["empty"]
            yield picture.file, picture.file, captions["style_category"]
            yield picture.file, files.get((picture.code, OTHER_STYLE[picture.style]), picture.file), captions["style"]
