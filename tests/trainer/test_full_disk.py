"""A disk that is full, read-only or gone, at any write of a run: one message, and the same command goes on from there."""

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.file.container import read_tensors
from ipadapter_trainer.config import Config
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.loop import train
from ipadapter_trainer.state import check_files, find_checkpoints
from support.full_disk import REFUSALS, refusing
from support.training import make_config, write_pictures

PLACES = 5  # of the writes of a run, spread evenly


@pytest.fixture
def config(tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Any) -> Config:
    return make_config(
        small_base_folder(),
        encoder_folder("clip"),
        write_pictures(tmp_path / "pictures", 6),
        tmp_path / "run",
        train={"steps": 2},
        checkpoint={"every": 1},
        cache={"path": str(tmp_path / "cache"), "shard_size": 4},
        validation={
            "every": 1,
            "images": 2,
            "timesteps": [500],
            "sample_every": 2,
            "samples": 1,
            "sampler_steps": 1,
            "strengths": [1.0],
        },
    )


def trained(config: Config) -> dict[str, torch.Tensor]:
    (checkpoint,) = find_checkpoints(config.run)[-1:]
    check_files(checkpoint)
    return read_tensors(checkpoint / "adapter.safetensors", can_map=False).tensors


def clear(config: Config) -> None:
    for folder in (config.run, Path(str(config.cache.path))):
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_whatever_write_of_a_run_is_refused_it_goes_on_to_the_same_end(config: Config) -> None:
    with refusing(1 << 40, "full") as came:
        train(config)
        export_checkpoint(config.run, None)
    wanted, total = trained(config), len(came)
    assert total > 100
    reasons, refused = list(REFUSALS), []
    for place in range(PLACES):
        clear(config)
        why = reasons[place % len(reasons)]
        try:
            with refusing(place * total // PLACES, why):
                train(config)
                export_checkpoint(config.run, None)
        except IPAdapterError as error:
            refused.append((why, str(error)))
        for checkpoint in find_checkpoints(config.run):
            check_files(checkpoint)
        train(config)
        assert export_checkpoint(config.run, None).path.is_file()
        assert all(torch.equal(value, wanted[name]) for name, value in trained(config).items())
    assert len(refused) > PLACES // 2, "some writes may fail without harm"
    assert [text for why, text in refused if os.strerror(REFUSALS[why]) not in text] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("limit", [*(pytest.param(limit, marks=pytest.mark.long) for limit in (0, 1000)), 60_000])
def test_libraries_that_write_by_themselves_fail_likewise(config: Config, limit: int) -> None:
    """By a limit of the system on the size of files, as no disk can be filled here."""
    train(config)
    whole = {path: path.read_bytes() for path in find_checkpoints(config.run)[-1].rglob("*") if path.is_file()}
    again = config.model_copy(update={"train": config.train.model_copy(update={"steps": 3})})
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            train(again)
        except IPAdapterError:
            status = 0
        finally:
            os._exit(status)
    _, waited = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(waited) == 0
    assert all(path.read_bytes() == data for path, data in whole.items())
    assert train(again).step == 3
