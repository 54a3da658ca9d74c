"""How ComfyUI shows our errors, and what of them it can say before anything runs."""

from collections.abc import Callable, Iterator

from ..ipadapter_core.errors import IPAdapterError


def name_plainly() -> None:
    """From now on ComfyUI shows the name of an error of ours alone.

    It writes the module before it, which is the path of this folder on the disk, unless that is Python's own; so the
    sentence is what a person reads first.
    """
    for kind in _kinds(IPAdapterError):
        kind.__module__ = "builtins"


def problem(check: Callable[[], object]) -> bool | str:
    """For `validate_inputs`: True, or the sentence of the error that a check raises, as it were while running."""
    try:
        check()
    except IPAdapterError as error:
        return str(error)
    return True


def _kinds(kind: type[IPAdapterError]) -> Iterator[type[IPAdapterError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)
