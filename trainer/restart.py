"""Another run that begins with the weights of a checkpoint, and with nothing else of it."""

import json
from pathlib import Path

from .config_file import read_config
from .files.checkpoint_export import find_checkpoint
from .state import ADAPTER, CONFIG, CheckpointError, check_files, find_checkpoints


def starting_weights(source: Path, run: Path) -> str:
    """The `--set` that lets a run begin with the trained weights of a checkpoint, or of a run's last one.

    Args:
        run: folder of the run that begins. If it began with these weights before, it goes on.

    Raises:
        CheckpointError: no such checkpoint, or the folder holds another run.
    """
    begins_with = find_checkpoint(source)
    check_files(begins_with, ADAPTER)
    weights = str(begins_with / ADAPTER)
    for checkpoint in find_checkpoints(run)[-1:]:
        if read_config(checkpoint / CONFIG).adapter.pretrained != weights:
            raise CheckpointError(
                f"{run} holds a run already, at {checkpoint.name}",
                expected=f"a folder without a run for one that begins with the weights of {source}",
                action="add --set train.output=ANOTHER_FOLDER; or leave --restart-from out, and the run there goes on",
            )
    return f"adapter.pretrained={json.dumps(weights, ensure_ascii=False)}"
