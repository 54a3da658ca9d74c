"""The `ipadapter` program."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable

import typer

from ipadapter_core.errors import IPAdapterError

from .commands.cache import cache
from .commands.convert import convert
from .commands.eval import evaluate
from .commands.export import export
from .commands.inspect import inspect
from .commands.new import new
from .commands.plan import plan
from .commands.sample import sample
from .commands.train import train
from .once import is_first_to_say
from .storage import storage
from .words import visible

app = typer.Typer(
    name="ipadapter",
    help="Train IP-Adapters: from a folder of images to a file that ComfyUI and diffusers load.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
COMMANDS: dict[str, Callable[..., None]] = {
    "new": new,
    "train": train,
    "cache": cache,
    "eval": evaluate,
    "sample": sample,
    "export": export,
    "convert": convert,
    "inspect": inspect,
    "plan": plan,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


class VisibleFormatter(logging.Formatter):
    """Names of files are shown; a terminal does not obey them."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def main() -> None:
    """Run a command; a user's mistake is one message and exit code 1, no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # in an encoding that may lack letters of a name, after hours of work
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(VisibleFormatter("%(message)s"))
    for library in ("accelerate", "httpx"):  # a line for each file of a checkpoint, for each request
        logging.getLogger(library).setLevel(logging.WARNING)
    for own_call in (".*torch_dtype.*", ".*local_dir_use_symlinks.*"):  # diffusers', which no user can change
        warnings.filterwarnings("ignore", message=own_call)
    if not sys.stderr.isatty():  # in a log a bar is a line of thousands of states
        os.environ.setdefault("TQDM_MININTERVAL", "60")
    try:
        with storage("a file"):
            app()
    except IPAdapterError as error:
        if is_first_to_say(str(error)):
            typer.echo(f"error: {visible(str(error))}", err=True)
        sys.exit(1)
