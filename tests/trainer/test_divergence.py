"""A run that has diverged keeps nothing of it, and says where it was still good."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.file.container import read_tensors, write_safetensors
from support.training import make_config, write_pictures
from trainer.config import Config
from trainer.loop import DivergedError, train
from trainer.state import find_checkpoints


@pytest.fixture
def config(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]
) -> Callable[..., Config]:
    pictures = write_pictures(tmp_path / "pictures", 4)

    def make(steps: int, **changes: dict[str, Any]) -> Config:
        often = {
            "train": {"steps": steps, "batch_size": 2, "log_every": 100, "trackers": []},
            "checkpoint": {"every": 1},
        }
        folders = small_base_folder(), encoder_folder("clip"), pictures, tmp_path / "run"
        return make_config(*folders, **often, **changes)

    return make


def is_finite(checkpoint: Path) -> bool:
    return all(tensor.isfinite().all() for tensor in read_tensors(checkpoint / "adapter.safetensors").tensors.values())


def test_no_checkpoint_holds_what_is_no_number(config: Callable[..., Config]) -> None:
    """Weights of 1e30 are numbers; what the next step makes of them is not, and no line is logged before the last."""
    one = config(6, optimizer={"learning_rate": 1e30, "clip_norm": 1e30})
    with pytest.raises(
        DivergedError, match=r"weights that are no numbers at step 2.*good checkpoint is .*step-00000001"
    ):
        train(one)
    kept = find_checkpoints(one.run)
    assert [checkpoint.name for checkpoint in kept] == ["step-00000001"]
    assert all(map(is_finite, kept))


def test_a_spoilt_checkpoint_is_not_recommended(config: Callable[..., Config]) -> None:
    one = config(2)
    train(one)
    spoilt = find_checkpoints(one.run)[-1] / "adapter.safetensors"
    given = read_tensors(spoilt)
    nothing = {name: torch.full_like(tensor, torch.nan) for name, tensor in given.tensors.items()}
    write_safetensors(spoilt, nothing, given.metadata)
    with pytest.raises(DivergedError, match=r"a loss of nan at step 3.*last good checkpoint is .*step-00000001"):
        train(config(3))


def test_nothing_good_is_said_so(config: Callable[..., Config]) -> None:
    with pytest.raises(DivergedError, match=r"no checkpoint is good"):
        train(
            config(
                1, optimizer={"learning_rate": 1e38, "clip_norm": 1e38}, adapter={"kind": "plus", "resampler_dim": 64}
            )
        )
