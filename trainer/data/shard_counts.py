"""How many samples of each size a shard holds, noted when it is first read through."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock

from .notes import append_notes, read_notes
from .pictures import Size


class ShardCounts:
    """A file that all readers of a run add to, so that a resumed run can pass over whole epochs.

    Args:
        path: of the file.
        recipe: what the counts depend on besides the shard; those of other recipes are ignored.
    """

    def __init__(self, path: Path, recipe: str) -> None:
        self.path = path
        self._recipe = recipe
        self._known: dict[str, Counter[Size]] = {}

    def load(self) -> None:
        """Read what the file holds by now."""
        notes, _ = read_notes(self.path)
        self._known = {note["shard"]: _parsed(note["counts"]) for note in notes if note.get("recipe") == self._recipe}

    def add(self, url: str, counts: Counter[Size]) -> None:
        """Note the counts of a shard, if they are new."""
        if url in self._known:
            return
        self._known[url] = counts
        written = {f"{height}x{width}": count for (height, width), count in counts.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")):
            append_notes(self.path, [{"shard": url, "recipe": self._recipe, "counts": written}])

    def of(self, urls: Sequence[str]) -> Counter[Size] | None:
        """Samples by size that these shards have together; None if one was not read through yet."""
        if any(url not in self._known for url in urls):
            return None
        return sum((self._known[url] for url in urls), Counter[Size]())


def _parsed(counts: Mapping[str, int]) -> Counter[Size]:
    sizes = {tuple(int(side) for side in name.split("x")): count for name, count in counts.items()}
    return Counter({(height, width): count for (height, width), count in sizes.items()})
