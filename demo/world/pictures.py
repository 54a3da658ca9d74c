"""Every emoji in two styles, 64 x 64 pixels on white, with captions and a held-out set that never changes.

`write_pictures(folder)` makes FOLDER/flat/*.png, FOLDER/3d/*.png and FOLDER/emoji.jsonl from the two packages.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ipadapter_core.file.container import write_aside

from .packages import FLUENT, NOTO, unpack

SIZE = 64  # pixels
HELD_OUT_SHARE = 0.1
STYLES = ("flat", "3d")
OTHER_STYLE = {"flat": "3d", "3d": "flat"}
LIST = "emoji.jsonl"

CATEGORIES = {  # as the packages name them, and as captions do
    "Smileys & Emotion": "smiley",
    "People & Body": "person",
    "Component": "person",
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Travel & Places": "place",
    "Activities": "activity",
    "Objects": "object",
    "Symbols": "symbol",
    "Flags": "flag",
}
_VARIATION_SELECTOR, _JOINER = "fe0f", "200d"
_SKINS = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_GENDERS = {"2640", "2642"}
_ADULTS = {"1f468": "1f9d1", "1f469": "1f9d1"}  # man, woman: person


@dataclass(frozen=True)
class Picture:
    """One emoji in one style.

    Attributes:
        code: Unicode code points without variation selectors, joined by "-".
        base: code without skin tone and gender: what its variants share.
        name: lower case.
        category: a value of `CATEGORIES`.
        file: below the folder.
        is_held_out: neither the image encoder nor the adapters see it; the base model may.
    """

    code: str
    base: str
    style: str
    name: str
    category: str
    file: str
    is_held_out: bool

    @property
    def caption(self) -> str:
        return f"{self.style} emoji of {self.name}, {self.category}"


def write_pictures(folder: Path, cache: Path) -> list[Picture]:
    """Draw all pictures into a folder; those already listed there are kept.

    Args:
        cache: where the packages lie or are fetched to.

    Raises:
        PackageError: a package cannot be had.
    """
    if not (folder / LIST).exists():
        lines = []
        for picture, source in tqdm(list(_sources(cache)), desc="pictures"):
            path = folder / picture.file
            path.parent.mkdir(parents=True, exist_ok=True)
            on_white(Image.open(source)).save(path)
            lines.append(json.dumps(asdict(picture)) + "\n")
        write_aside(folder / LIST, lambda path: path.write_text("".join(lines), encoding="utf-8"))
    return read_list(folder)


def read_list(folder: Path) -> list[Picture]:
    lines = (folder / LIST).read_text(encoding="utf-8").splitlines()
    return [Picture(**json.loads(line)) for line in lines]


def read_pixels(folder: Path, pictures: list[Picture]) -> NDArray[np.uint8]:
    """(N, 64, 64, 3), 0..255."""
    return np.stack([np.asarray(Image.open(folder / picture.file).convert("RGB")) for picture in pictures])


def on_white(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGBA")
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return without_alpha(picture)


def without_alpha(picture: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white, as the world's emoji have it."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def plain(code: str) -> str:
    """Code points without variation selectors, by which the two packages are joined."""
    return "-".join(part for part in code.lower().split("-") if part != _VARIATION_SELECTOR)


def base_of(code: str) -> str:
    """Code of what a plain code is a variant of: no skin tone, no gender, "person" for man and woman."""
    parts = [_ADULTS.get(part, part) for part in code.split("-") if part not in _SKINS | _GENDERS]
    while parts and parts[-1] == _JOINER:
        parts.pop()
    return "-".join(parts) or code  # the signs for tones and genders themselves


def is_held_out(base: str) -> bool:
    """Whether a base code belongs to the held-out tenth: by its hash, so that no list can drift."""
    digest = hashlib.blake2b(base.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < HELD_OUT_SHARE


def _sources(cache: Path) -> Iterator[tuple[Picture, Path]]:
    noto, fluent = unpack(NOTO, cache), unpack(FLUENT, cache)
    in_3d = {plain(file.stem): file for file in (fluent / FLUENT.folder).glob("*.webp")}
    for entry in json.loads((noto / "package" / "emoji.json").read_text(encoding="utf-8")):
        code = plain(entry["unified"])
        name = (entry["name"] or entry["short_name"].replace("_", " ")).lower()
        flat = noto / NOTO.folder / entry["image"]
        for style, source in zip(STYLES, (flat, in_3d.get(code)), strict=True):
            if source is not None and source.exists():
                base = base_of(code)
                yield (
                    Picture(
                        code, base, style, name, CATEGORIES[entry["category"]], f"{style}/{code}.png", is_held_out(base)
                    ),
                    source,
                )
