"""`ipadapter eval`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, ConfigPath, Overrides
from .output import emit


def evaluate(
    config: ConfigPath,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Adapter file; adapter.safetensors of the run folder if not given."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where pictures go; RUN/eval-NAME if not given."),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="References drawn; validation.samples if not given.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer's way
    as_json: AsJson = False,
) -> None:
    """Measure an adapter on the pictures that its training held out.

    Losses with the right, no and a wrong reference; pictures at every strength of validation.strengths; CLIP-I, CLIP-T
    and DINO similarity by validation.clip_model and validation.dino_model, which may not be the training encoder.

    Example: `ipadapter eval my.toml --adapter runs/mine/adapter.safetensors --images 8`
    """
    from ..config_file import read_config

    settings = read_config(config, overrides)  # before the libraries, which take their time: a mistake shows at once

    from ..evaluation import evaluate as run

    file = adapter or settings.run / "adapter.safetensors"
    emit(run(settings, file, output or settings.run / f"eval-{file.stem}", images=images), as_json)
