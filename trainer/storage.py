"""What a disk or a share refuses, as one message: full, read-only, gone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ipadapter_core.errors import IPAdapterError

from .words import first_line

GOES_ON = "the same command then goes on from the last checkpoint"
_TORCH_WRITER = ("PytorchStreamWriter", "inline_container", "iostream error")  # in messages of its RuntimeError


class StorageError(IPAdapterError):
    """A file or folder that cannot be written, or not be read any more."""


@contextmanager
def storage(
    what: str, place: Path | None = None, *, goes_on: str = "then give the same command again"
) -> Iterator[None]:
    """Turn what the system says of a file, inside the `with`, into a message.

    Args:
        what: is written or read.
        place: where, if the system does not say.
        goes_on: what to do once there is room.

    Raises:
        StorageError: it cannot be.
    """
    try:
        yield
    except IPAdapterError:
        raise
    except (OSError, SafetensorError) as error:
        raise _refused(what, place, error, goes_on) from error
    except RuntimeError as error:
        if not any(mark in str(error) for mark in _TORCH_WRITER):
            raise
        raise _refused(what, place, error, goes_on) from error


def _refused(what: str, place: Path | None, error: Exception, goes_on: str) -> StorageError:
    named = getattr(error, "filename", None) or place
    said = error.strerror if isinstance(error, OSError) else None
    reason = said or first_line(error)
    return StorageError(
        f"{what} cannot be written or read{f' at {named}' if named else ''} ({reason})",
        expected="a disk with room, and folders that can be written and stay there",
        action=f"free some space, or see that the folder is there and may be written; {goes_on}",
    )
