"""One message for a mistake that all processes of a launch meet."""

import hashlib
import os
import tempfile
from pathlib import Path


def is_first_to_say(message: str) -> bool:
    """Whether no other process of this launch on this machine has asked for the same message.

    A launcher (torchrun, accelerate) tells each of its processes the number of them and an address that is the launch's
    own; a process that was started alone is always the first.
    """
    launch = [os.environ.get(name, "") for name in ("LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
    if launch[0] in ("", "1"):
        return True
    # of the same launcher: a port is used again, by a later launch too
    text = "\0".join([*launch, os.environ.get("TORCHELASTIC_RESTART_COUNT", ""), str(os.getppid()), message])
    note = (
        Path(tempfile.gettempdir())
        / f"ipadapter-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:32]}"
    )
    try:
        note.touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # nowhere to note it: better twice than never
        return True
    return True
