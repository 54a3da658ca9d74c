"""Write every workflow, in both forms, into tests/legacy/workflows/."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import scenes_apply, scenes_rest
from .page import Page

FOLDER = Path(__file__).resolve().parents[1] / "workflows"


def pages() -> Iterator[Page]:
    yield from scenes_apply.scenes()
    yield from scenes_rest.scenes()


def files() -> Iterator[tuple[str, str]]:
    """Name and text of every file."""
    for page in pages():
        yield f"{page.name}.json", _text(page.saved())
        yield f"{page.name}.api.json", _text(page.prompt())


def _text(content: dict[str, Any]) -> str:
    """One line a node or link, so that changes can be read."""
    lines = []
    for name, value in content.items():
        if isinstance(value, list) and value:
            rows = ",\n".join(f"  {json.dumps(row)}" for row in value)
            lines.append(f"{json.dumps(name)}: [\n{rows}\n]")
        else:
            lines.append(f"{json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    wanted = dict(files())
    for path in FOLDER.glob("*.json"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
