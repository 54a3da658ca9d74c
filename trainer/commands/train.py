"""`ipadapter train`."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..words import size
from .options import AsJson, ConfigPath, Overrides, same_config
from .output import emit


def train(
    config: ConfigPath,
    restart_from: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Begin another run with the weights alone of a run or checkpoint, in another train.output.",
        ),
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer's way
    as_json: AsJson = False,
    stop_with_input: Annotated[
        bool,
        typer.Option("--stop-with-input", help="Stop as Ctrl-C does when standard input ends: for programs."),
    ] = False,
) -> None:
    """Train an adapter, or go on with the run that train.output holds; exports it at the end.

    Ctrl-C and SIGTERM write a checkpoint and leave; the same command goes on from there. `report.html` in the run
    folder shows curves and pictures.

    Example: `ipadapter train my.toml --set train.steps=2000`; on all GPUs: `accelerate launch -m ipadapter_trainer train my.toml`
    """
    from ..config_file import read_config
    from ..stop import interrupt_with_input

    if stop_with_input:
        interrupt_with_input()
    # before the libraries, which take their time: a mistake shows at once
    started = [] if restart_from is None else [f"adapter.pretrained={json.dumps(str(restart_from))}"]
    settings = read_config(config, [*overrides, *started])

    from accelerate import PartialState

    from ..files.checkpoint_export import export_checkpoint
    from ..loop import train as run
    from ..restart import starting_weights
    from ..state import BEST
    from ..watch.report import REPORT_FILE, verdict

    if restart_from is not None:
        settings = read_config(config, [*overrides, starting_weights(restart_from, settings.run)])
    outcome = run(settings)
    if not PartialState().is_main_process:
        return
    report = str(settings.run / REPORT_FILE)
    result: dict[str, object] = {"run": str(settings.run), "step": outcome.step, "samples": outcome.samples}
    result |= {
        "loss": outcome.losses[-1] if outcome.losses else None,
        "finished": outcome.is_finished,
        "report": report,
    }
    if not outcome.is_finished:
        emit(result | {"next": f"the same command goes on from step {outcome.step:,}"}, as_json)
        return
    exported = export_checkpoint(settings.run, None)
    if as_json:
        emit(result | {"export": exported.to_json()}, as_json)
        return
    emit(
        {
            "trained": f"{outcome.step:,} steps, {outcome.samples:,} pictures seen",
            "result": verdict(settings.run),
            "report": report,
            "file": f"{exported.path} ({size(exported.size_bytes)}; {exported.portability.label})",
            "card": exported.card,
            "next": [
                f"open {report} in a browser",
                f"cp {shlex.quote(str(exported.path))} ComfyUI/models/ipadapter/",
                f"ipadapter export {shlex.quote(str(settings.run))} --best -o best.safetensors"
                if (settings.run / BEST).is_file()
                else f"ipadapter eval {same_config(config, overrides)}",
            ],
        },
        as_json,
    )
