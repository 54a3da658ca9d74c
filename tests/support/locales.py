"""What ComfyUI's page shows of the native nodes, as its locale files have it: the English of locales/.

`python -m support.locales` in tests/ writes locales/en/nodeDefs.json, which the other languages are translated from.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from support import comfy_host

FOLDER = comfy_host.ROOT / "locales"
CAPITALS = {"clip_vision": "CLIP vision"}

Texts = dict[str, Any]


def english() -> Texts:
    """Title, description, and name and tooltip of every input and output, by node id."""
    return {node.GET_SCHEMA().node_id: _node(node.GET_SCHEMA()) for node in comfy_host.pack("nodes").NODES}


def read(language: str, file: str = "nodeDefs") -> Texts:
    texts: Texts = json.loads((FOLDER / language / f"{file}.json").read_text(encoding="utf-8"))
    return texts


def _node(schema: Any) -> Texts:
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {item.id: _slot(item) for item in schema.inputs},
        "outputs": {str(index): _slot(item) for index, item in enumerate(schema.outputs)},
    }


def _slot(item: Any) -> Texts:
    name = CAPITALS.get(item.id) or item.id.replace("_", " ")
    if item.display_name not in (None, item.id):  # an output's is its id where none is given
        name = item.display_name
    return {"name": name, "tooltip": item.tooltip}


def _write() -> None:
    with tempfile.TemporaryDirectory() as folder:
        comfy_host.start(Path(folder))
        text = json.dumps(english(), indent=2, ensure_ascii=False)
    (FOLDER / "en" / "nodeDefs.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    _write()
