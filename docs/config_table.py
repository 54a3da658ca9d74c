"""Writes the tables of settings in docs/training.md: `scripts/env.sh python docs/config_table.py`."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ipadapter_trainer.config import Config

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "training.md"
BEGIN, END = "<!-- settings: written by docs/config_table.py -->\n", "<!-- end of settings -->\n"
_KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
_LIMITS = {"minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}"}
_LIMITS |= {"multipleOf": "multiple of {}"}


def render() -> str:
    """A heading, a sentence and a table for each section of a config, from its fields and their descriptions."""
    schema = Config.model_json_schema()
    return "\n".join(_sections(schema, schema["$defs"], ""))


def write(guide: Path = GUIDE) -> None:
    """Put the tables between the two marks."""
    before, _, rest = guide.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    guide.write_text(f"{before}{BEGIN}\n{render()}\n{END}{after}", encoding="utf-8")


def _sections(schema: Mapping[str, Any], models: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, field in schema["properties"].items():
        is_list = "$ref" in field.get("items", {})
        if "$ref" not in field and not is_list:
            continue
        model = models[(field["items"] if is_list else field)["$ref"].rpartition("/")[2]]
        header = f"[[{prefix}{name}]]" if is_list else f"[{prefix}{name}]"
        yield f"#### {header}\n\n{_one_line(model['description'])}\n\n{_table(model)}"
        yield from _sections(model, models, f"{prefix}{name}.")


def _table(model: Mapping[str, Any]) -> str:
    required = model.get("required", ())
    rows = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for name, field in model["properties"].items():
        if "$ref" in field or "$ref" in field.get("items", {}):
            continue
        default = "required" if name in required else _literal(field.get("default"))
        rows.append(f"| `{name}` | {_takes(field)} | {default} | {_one_line(field['description'])} |")
    return "\n".join(rows) + "\n"


def _takes(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_takes(option) for option in field["anyOf"] if option.get("type") != "null")
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field["type"] == "array":
        items = field.get("items") or field["prefixItems"][0]
        return f"list of: {_takes(items)}"
    limits = [words.format(f"{field[key]:g}") for key, words in _LIMITS.items() if key in field]
    return " ".join([_KINDS[field["type"]], ", ".join(limits)]).strip()


def _literal(value: object) -> str:
    return "none" if value is None else f"`{json.dumps(value)}`"


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", r"\|")


if __name__ == "__main__":
    write()
