"""The pictures in a folder: all that the user put there, and nothing that systems and programs leave."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from .pictures import SUFFIXES

CAPTION_SUFFIXES = (".txt", ".caption")
_MADE_BY_PROGRAMS = frozenset(
    {
        "@eaDir", "#recycle", "#snapshot", "__MACOSX", "__pycache__", "$RECYCLE.BIN", "System Volume Information",
        "lost+found", "Thumbs.db", "desktop.ini",
    }
)  # fmt: skip
"""Synology's thumbnails, bin and snapshots, what macOS puts into zip files, Windows' bin and so on."""
_MOST_NAMED = 5


def is_left_by_a_program(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or a copy that a program made for itself."""
    return name.startswith(".") or name in _MADE_BY_PROGRAMS


@dataclass
class Contents:
    """What a folder and its sub-folders hold.

    Attributes:
        files: all that are the user's, in the order of their paths.
        hidden: names of hidden and programs' files and folders, with the number of pictures there.
        lost_links: links that lead nowhere.
        known_links: links to folders that are read already; a picture must not be there twice.
        closed: folders that cannot be read.
    """

    files: list[Path] = field(default_factory=list)
    hidden: Counter[str] = field(default_factory=Counter)
    lost_links: int = 0
    known_links: int = 0
    closed: int = 0

    def ending_in(self, suffixes: Sequence[str]) -> list[Path]:
        """Files by their suffix, whatever its case."""
        return [path for path in self.files if path.suffix.lower() in suffixes]

    def left_out(self) -> str:
        """What of it is no training picture, in words; "" if there is nothing to say."""
        suffixes = (path.suffix.lower() for path in self.files)
        others = Counter(suffix for suffix in suffixes if suffix not in (*SUFFIXES, *CAPTION_SUFFIXES))
        parts = [f"{number} {suffix or 'without a suffix'}" for suffix, number in others.most_common(_MOST_NAMED)]
        unnamed = others.total() - sum(number for _, number in others.most_common(_MOST_NAMED))
        if unnamed:
            parts.append(f"{unnamed} of other kinds")
        if self.hidden:
            names = ", ".join(list(self.hidden)[:_MOST_NAMED]) + (" …" if len(self.hidden) > _MOST_NAMED else "")
            parts.append(f"{_several(self.hidden.total(), 'picture')} in hidden or programs' own places ({names})")
        if self.lost_links:
            parts.append(f"{_several(self.lost_links, 'link')} that lead{'s' * (self.lost_links == 1)} nowhere")
        if self.known_links:
            parts.append(f"{_several(self.known_links, 'link')} to folders that are read already")
        if self.closed:
            parts.append(f"{_several(self.closed, 'folder')} that cannot be read")
        return ", ".join(parts)


def contents(root: Path) -> Contents:
    """Look through a folder and its sub-folders, linked ones too, each once and under its own name where it has one."""
    found = Contents()
    top = os.path.realpath(root)
    seen: set[str] = set()
    links = _read(str(root), found, seen)
    while links:
        further: list[str] = []
        for link in sorted(links):
            target = os.path.realpath(link)
            if target in seen or os.path.join(top, "").startswith(os.path.join(target, "")):
                found.known_links += 1
            else:
                further += _read(link, found, seen)
        links = further
    found.files.sort()
    return found


def _read(folder: str, found: Contents, seen: set[str]) -> list[str]:
    """Put what is below a folder into `found`, but for linked folders, which it returns."""
    links = []
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        seen.add(os.path.realpath(place))
        try:
            with os.scandir(place) as listed:
                entries = list(listed)
        except OSError:
            found.closed += 1
            continue
        for entry in entries:
            if is_left_by_a_program(entry.name):
                pictures = _pictures_below(entry)
                found.hidden.update({entry.name: pictures} if pictures else {})
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path):
                found.files.append(Path(entry.path))
            elif os.path.isdir(entry.path):
                links.append(entry.path)
            else:
                found.lost_links += entry.is_symlink()
    return links


def _pictures_below(entry: "os.DirEntry[str]") -> int:
    if not entry.is_dir(follow_symlinks=False):
        return int(PurePath(entry.name).suffix.lower() in SUFFIXES)
    names = (name for _, _, files in os.walk(entry.path) for name in files)
    return sum(PurePath(name).suffix.lower() in SUFFIXES for name in names)


def _several(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
