"""`ipadapter export`."""

from pathlib import Path
from typing import Annotated

import typer

from ..config import Precision
from .options import AsJson, Overrides
from .output import emit

RunPath = Annotated[
    Path, typer.Argument(metavar="RUN_OR_CHECKPOINT", help="Run folder, or one of its checkpoints.", show_default=False)
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="File to write; RUN/adapter.safetensors if not given."),
]
Ema = Annotated[
    bool | None,
    typer.Option("--ema/--raw", help="Moving average or trained weights; the average where there is one."),
]


def export(
    run: RunPath,
    output: Output = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Type of the weights; export.precision of the config if not given.")
    ] = None,
    ema: Ema = None,
    best: Annotated[bool, typer.Option("--best", help="Weights of the run that were best by validation.best.")] = False,
    overrides: Overrides = [],  # noqa: B006 - typer's way
    as_json: AsJson = False,
) -> None:
    """Write the adapter of a run as one file with all its metadata, and a model card beside it.

    Before the file gets its name it is read back, by this project and by diffusers, and outputs are compared. Where
    diffusers computes something else, file, card and this command say "native nodes only" and why.

    Example: `ipadapter export runs/mine -o mine.safetensors --precision bf16`
    """
    from ..files.checkpoint_export import Weights, export_checkpoint

    given: list[str] = list(overrides)
    if precision is not None:
        given.append(f"export.precision={precision}")
    if best and ema is not None:
        raise typer.BadParameter("choose one of --best, --ema and --raw")
    weights: Weights = "best" if best else "auto" if ema is None else "average" if ema else "trained"
    report = export_checkpoint(run, output, weights=weights, overrides=given)
    emit(report.to_json(), as_json)
