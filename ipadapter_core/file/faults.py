"""What is said of a file that cannot be used."""

import errno
import os
from pathlib import Path

from ..errors import UnreadableFileError


def a_file(kind: str) -> str:
    """ "an adapter file", "a LoRA file"."""
    return f"{'an' if kind[0].lower() in 'aeio' else 'a'} {kind} file"


def unreadable(path: Path, kind: str, error: OSError | ValueError) -> UnreadableFileError:
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.ELOOP:
        found = f"{path} is a link that leads back to itself"
    elif code == errno.ENOENT:
        is_link = path.is_symlink()
        found = f"{path} is a link to {os.readlink(path)}, which is not there" if is_link else f"no file at {path}"
    else:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        found = f"{path} cannot be read ({reason})"
    return UnreadableFileError(found, expected=a_file(kind), action="choose another file or put this one back")


def damaged(path: Path, kind: str, what: str) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path.name} is no usable {kind} file: {what}",
        expected=f"a complete {kind} file",
        action="download or export it again and compare its size with the source",
    )


def misnamed(path: Path, kind: str, what: str, better: Path) -> UnreadableFileError:
    return UnreadableFileError(
        f"{path.name} is {what} by its content",
        expected=f"{a_file(kind)} that is what its suffix {path.suffix} says",
        action=f"rename it to {better.name} if you trust its source",
    )
