"""A share that goes away in the middle of a run is one message, in whichever process it is met."""

import errno
import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from ipadapter_core.errors import IPAdapterError
from ipadapter_trainer.cache.store import CacheError
from ipadapter_trainer.config import Config
from ipadapter_trainer.data.digests import DigestMemo
from ipadapter_trainer.data.loader import World, open_batches
from ipadapter_trainer.data.pictures import FilePicture
from ipadapter_trainer.data.records import DataError
from ipadapter_trainer.data.sample import SampleMaker
from ipadapter_trainer.data.sources import open_source
from ipadapter_trainer.run import Run, open_run
from support.pictures import GEOMETRY, run_config, write_folder
from support.training import make_config, write_pictures


@pytest.fixture
def cached(tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Any) -> Run:
    config = make_config(
        small_base_folder(),
        encoder_folder("clip"),
        write_pictures(tmp_path / "pictures", 6),
        tmp_path / "run",
        cache={"path": str(tmp_path / "cache"), "shard_size": 2},
    )
    return open_run(config, lacking="fill")


def test_a_cache_that_is_gone_is_said(cached: Run) -> None:
    batches = cached.batches(0)
    next(batches)
    shutil.rmtree(str(cached.config.cache.path))
    with pytest.raises((CacheError, DataError), match=r"ipadapter cache CONFIG"):
        deque(islice(batches, 20))


def test_pictures_that_are_gone_end_the_run_with_their_reason(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", 6)
    config = run_config(tmp_path, tmp_path / "pictures")
    batches = open_batches(config, open_source(config.data), World(), GEOMETRY)
    next(batches)
    shutil.rmtree(tmp_path / "pictures")
    with pytest.raises(DataError, match=r"pictures in a row that cannot be used, .*no such file"):
        next(batches)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_an_index_of_digests_on_a_lost_share_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    memo, picture = DigestMemo(tmp_path / "digests.sqlite"), FilePicture(write_folder(tmp_path, 1)[0])
    known = Path.stat

    def lost(path: Path, **options: Any) -> os.stat_result:
        if path == memo.path:
            raise OSError(code, os.strerror(code))
        return known(path, **options)

    monkeypatch.setattr(Path, "stat", lost)
    with pytest.raises(IPAdapterError, match=os.strerror(code)):
        memo.digest(picture)


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="what dies here would live in a new process")
def test_a_data_process_that_dies_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does with a bus error, when a mapped file is on a share that went away."""
    write_folder(tmp_path / "pictures", 6)
    config: Config = run_config(tmp_path, tmp_path / "pictures", data={"workers": 1})
    monkeypatch.setattr(SampleMaker, "first_usable", lambda *_: os._exit(7))
    with pytest.raises(DataError, match=r"a process that reads pictures ended .*data\.workers"):
        next(open_batches(config, open_source(config.data), World(), GEOMETRY))
