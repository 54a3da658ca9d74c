"""`ipadapter new`."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from ipadapter_core.errors import BadInputError

from .options import AsJson
from .output import emit

_BASES = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}
Data = Annotated[
    str, typer.Argument(metavar="FOLDER", help="Folder of pictures, list file or dataset.", show_default=False)
]


def new(
    data: Data,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="CONFIG.toml", help="Config to write; FOLDER.toml here if not given."),
    ] = None,
    base: Annotated[str, typer.Option(help="Model to train for: sd15, sdxl, a folder, file or hub id.")] = "sd15",
    encoder: Annotated[
        str, typer.Option(help="Image encoder: folder or hub id.")
    ] = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    as_json: AsJson = False,
    kind: Annotated[
        Literal["base", "plus"] | None, typer.Option(help="Kind of adapter, if not what is suggested.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, if not what is suggested.")] = None,
    start_from: Annotated[
        str | None, typer.Option(help="Adapter file to start from, or none, if not what is suggested.")
    ] = None,
) -> None:
    """Look at your pictures and write a config that fits them and this machine; says which command comes next.

    Kind, resolution, buckets, references, batch and steps are chosen, with the reason beside each. Change what you like.

    Example: `ipadapter new my_pictures`, then `ipadapter plan my_pictures.toml`
    """
    from ..config_file import read_config
    from ..start.suggestion import PUBLISHED, Wanted, describe, suggest, to_toml
    from ..start.survey import find_models, survey, this_machine

    name = Path(data).resolve().stem or "mine"
    file = output or Path(f"{name}.toml")
    if file.exists():
        raise BadInputError(f"{file}, which is there", expected="a name for a new file", action="choose one with -o")
    if not file.parent.is_dir():
        raise BadInputError(
            f"no folder {file.parent}", expected="an existing folder", action="make it, or choose another"
        )
    pictures = survey(data)
    models = find_models(_BASES.get(base, base), encoder)
    wanted = Wanted(kind=kind, steps=steps, start_from=start_from)
    made = suggest(data, name, pictures, models, this_machine(), wanted)
    header = f"Written by `ipadapter new` for {pictures.count:,} pictures.\n\n  ipadapter train {file}"
    file.write_text(to_toml(made, header), encoding="utf-8")
    config = read_config(file)  # what is suggested is what can be read
    needed, quoted = config.adapter.pretrained, shlex.quote(str(file))
    download = f"hf download h94/IP-Adapter {PUBLISHED[models.is_sdxl]} --local-dir ."
    is_missing = needed is not None and not Path(needed).exists()
    result = {
        "config": str(file),
        **describe(pictures),
        "adapter": f"{config.adapter.kind}, {f'from {Path(needed).name}' if needed else 'from nothing'}",
        "resolution": f"{config.data.resolution}{' with buckets' if config.data.buckets else ''}",
        "reference": config.data.reference,
        "steps": f"{config.train.steps:,} of {config.train.batch_size} x {config.train.accumulate} pictures",
        "notes": made.notes,
        "next": [*([download] if is_missing else []), f"ipadapter plan {quoted}", f"ipadapter train {quoted}"],
    }
    emit(result, as_json)
