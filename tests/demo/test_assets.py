"""demo/ASSETS.md says what every shipped file of the demo is, and is right about it."""

import hashlib
import re
from pathlib import Path

from demo.server import ROOT

TABLE = ROOT / "demo" / "ASSETS.md"
ROW = re.compile(r"^\| `(?P<file>[^`]+)` \| (?P<digest>[0-9a-f]{16}) \| ", re.MULTILINE)
LARGEST = 64 * 1024**2  # bytes in git, by the issue that asked for the models


def recorded() -> dict[str, str]:
    return {row["file"]: row["digest"] for row in ROW.finditer(TABLE.read_text(encoding="utf-8"))}


def shipped() -> list[Path]:
    return sorted(
        path for path in (ROOT / "demo" / "assets").rglob("*") if path.is_file() and path.name != "curve.json"
    )


def thumbnails() -> list[Path]:
    return [path for pattern in ("workflows/*.jpg", "demo/packs/*/workflows/*.jpg") for path in ROOT.glob(pattern)]


def test_every_shipped_file_has_its_digest_and_licence() -> None:
    pictures = [path for path in (ROOT / "docs").iterdir() if path.suffix in (".png", ".jpg")]
    files = [*shipped(), *thumbnails(), *pictures]
    digests = {str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}
    assert recorded() == digests


def test_they_are_small_enough_for_git() -> None:
    assert sum(path.stat().st_size for path in shipped()) <= LARGEST


def test_what_else_went_into_the_adapters_is_said_where_they_are_praised() -> None:
    """The demo's models have a training loop of their own, which is not the one that users get."""
    first = TABLE.read_text(encoding="utf-8").split("\n\n")[1]
    praise = next(
        part for part in (ROOT / "README.md").read_text(encoding="utf-8").split("\n\n") if "It knows emoji" in part
    )
    assert (ROOT / "demo" / "world" / "training.py").is_file()
    for text in (first, praise.partition("pictures follow a reference")[0]):
        assert "alone" in text
        assert "loop of the demo's own" in " ".join(text.split())
