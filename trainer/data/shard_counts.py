"""How many samples of each size a shard holds, noted when it is first read through."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

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
        self._known: dict[str, Counter[str]] = {}

    def load(self) -> None:
        """Read what the file holds by now."""
        if self.path.is_file():
            notes = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
            self._known = {note["shard"]: Counter(note["counts"]) for note in notes if note["recipe"] == self._recipe}

    def add(self, url: str, counts: Counter[Size]) -> None:
        """Note the counts of a shard, if they are new."""
        if url in self._known:
            return
        self._known[url] = Counter({f"{height}x{width}": count for (height, width), count in counts.items()})
        note = json.dumps({"shard": url, "recipe": self._recipe, "counts": self._known[url]})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock")), self.path.open("a", encoding="utf-8") as file:
            file.write(f"{note}\n")

    def batches(self, urls: Sequence[str], batch_size: int) -> int | None:
        """Batches of one size each that these shards give together; None if one was not read through yet."""
        if any(url not in self._known for url in urls):
            return None
        total = sum((self._known[url] for url in urls), Counter[str]())
        return sum(-(-count // batch_size) for count in total.values())
