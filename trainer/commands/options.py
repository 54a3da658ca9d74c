"""Options that several commands share."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Training config.", show_default=False)]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="a.b=c", help="Change one value of the config; may be given several times."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object for programs.")]


def same_config(config: Path, overrides: Sequence[str]) -> str:
    """The arguments of another command on what this one was given."""
    return shlex.join([str(config), *(part for override in overrides for part in ("--set", override))])
