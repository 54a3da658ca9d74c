"""What a command says at its end: a table for a person, or one JSON object for a program."""

import json
from collections.abc import Callable, Iterable, Mapping

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..words import count, duration, size, visible

_NEXT = "next"  # of a result: what to do, or a list of it
# by the last word of a name: what the number is in words, and what is left of the name
_UNITS: dict[str, tuple[Callable[[float], str], str]] = {
    "bytes": (size, "size"),
    "parameters": (count, "parameters"),
    "seconds": (duration, "time"),
    "hours": (lambda hours: duration(3600 * hours), "time"),
    "rounding": ("{:.2g} of the largest value".format, "rounding"),
}


def emit(result: Mapping[str, object], as_json: bool) -> None:
    """Write a result to standard output; everything else a command says goes to standard error."""
    if as_json:
        typer.echo(json.dumps(result, default=str))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _rows({name: value for name, value in result.items() if name != _NEXT}):
        table.add_row(Text(visible(name), "bold"), Text(visible(_text(value))))
    console = Console()
    console.print(table)
    steps = result.get(_NEXT, ())
    for step in steps if isinstance(steps, Iterable) and not isinstance(steps, str) else (steps,):
        # outside the table and unwrapped, either of which would break a command in two
        console.print(visible(f"next: {step}"), soft_wrap=True, markup=False, highlight=False)


def _rows(result: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, value in result.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            rows += _rows(value, f"{label}: ")
        else:
            rows.append(_with_unit(label, value))
    return rows


def _with_unit(label: str, value: object) -> tuple[str, object]:
    before, _, last = label.rpartition(" ")
    if last not in _UNITS or isinstance(value, bool) or not isinstance(value, int | float):
        return label, value
    in_words, name = _UNITS[last]
    return (before if before and not before.endswith(":") else f"{before} {name}".strip()), in_words(value)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        if any(" " in str(item) for item in value):  # sentences and commands
            return "\n".join(map(_text, value))
        return ", ".join(_text(item) for item in value) or "none"
    return str(value)
