"""`ipadapter convert`."""

from pathlib import Path
from typing import Annotated

import typer

from ipadapter_core.file.spec import Negative

from ..config import Precision
from .options import AsJson
from .output import emit

Source = Annotated[
    Path, typer.Argument(metavar="FILE", help="Weight file, or folder of a training state.", show_default=False)
]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="OUT.safetensors", help="File to write.", show_default=False)
]


def convert(
    file: Source,
    output: Output,
    state: Annotated[
        Path | None, typer.Option(help="Training state that an empty conversion (no ip_adapter tensors) came from.")
    ] = None,
    precision: Annotated[Precision | None, typer.Option(help="Type of the weights; unchanged if not given.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Name of the image encoder, for the metadata.")] = None,
    layer: Annotated[int | None, typer.Option(help="Hidden state the adapter reads; -2 is usual.")] = None,
    negative: Annotated[Negative | None, typer.Option(help="What a dropped image was in training.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn another program's training state or adapter file into a safetensors file that loads everywhere.

    Reads accelerate states of the official scripts (whole, or without the shared tensors), mmengine and diffusers
    layouts of diffengine, published .bin files, XLabs' layouts, and files whose attention layers are misnumbered.

    Example: `ipadapter convert checkpoint-10000 -o mine.safetensors --precision fp16`
    """
    from ..convert.conversion import Hints, convert_file

    hints = Hints(encoder=encoder, layer=layer, negative=negative)
    outcome = convert_file(file, output, state=state, hints=hints, precision=precision)
    emit(outcome.to_json(), as_json)
