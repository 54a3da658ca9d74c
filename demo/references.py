"""The reference pictures of the demo: emoji of the held-out tenth, which neither image encoder nor adapters have seen.

`python -m demo.references PICTURES` copies them from the folder that `demo.world.pictures` wrote into demo/assets.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).with_name("assets") / "references"
STYLES = ("flat", "3d")
CODES = {  # Unicode code point by name
    "fox": "1f98a",
    "cat": "1f63a",
    "lotus": "1fab7",
    "tram": "1f68a",
    "city": "1f307",
    "crown": "1f451",
}
FILES = tuple(f"{name}_{style}.png" for name in CODES for style in STYLES)

PHOTO = "your_picture.png"  # name of --image in ComfyUI's input folder


def path_of(file: str) -> Path:
    """Of a name in `FILES`."""
    return FOLDER / file


def put_into(folder: Path, photo: Image.Image | None = None) -> None:
    """Put all of them, and the user's picture, into ComfyUI's input folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in FILES:
        shutil.copyfile(path_of(file), folder / file)
    if photo is not None:
        photo.save(folder / PHOTO)


def copy_from(pictures: Path) -> None:
    """Copy them from a folder with flat/ and 3d/ in it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, code in CODES.items():
        for style in STYLES:
            shutil.copyfile(pictures / style / f"{code}.png", path_of(f"{name}_{style}.png"))


if __name__ == "__main__":
    copy_from(Path(sys.argv[1]))
