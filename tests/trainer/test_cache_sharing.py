"""Processes share the work without doubling it, and a kill costs one block at most."""

import errno
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import Tensor

from ipadapter_trainer.cache import claims
from ipadapter_trainer.cache.claims import claim
from ipadapter_trainer.cache.sharing import Share, fill_store
from ipadapter_trainer.cache.store import CacheError, CacheStore
from support import processes
from support.cache_worker import RECIPE, SHARD_SIZE, blocks, entry, fill, key
from support.crash import DIED, die_before_write

FEWEST = 30  # writes to die at; found: 46


def _store(folder: Path) -> CacheStore:
    return CacheStore(folder, "latents", RECIPE)


def _check_complete(folder: Path, entries: int) -> None:
    store = _store(folder)
    assert [problem for _, problem in store.check() if problem] == []
    assert not list(folder.rglob("*.partial"))
    for left in folder.rglob("*.lock"):  # of a process that died when the block was made
        FileLock(left).acquire(blocking=False).lock.release()
    for number in range(entries):
        read = store.get(key(number))
        assert all(torch.equal(read[part], tensor) for part, tensor in entry(number).items())


def test_processes_at_once_make_each_entry_once(tmp_path: Path) -> None:
    folder, log, entries = tmp_path / "cache", tmp_path / "log", 100
    both = [processes.start(fill, folder, entries, 0.01, log) for _ in range(2)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert Counter(log.read_text().split()) == dict.fromkeys(map(key, range(entries)), 1)
    assert not list(folder.rglob("*.lock"))
    _check_complete(folder, entries)


def test_kills_at_random_moments_leave_nothing_damaged_and_cost_a_block_each(tmp_path: Path) -> None:
    folder, log, entries, kills = tmp_path / "cache", tmp_path / "log", 160, 3
    randomness = random.Random(0)
    for _ in range(kills):
        done = _lines(log)
        process = processes.start(fill, folder, entries, 0.005, log)
        while process.is_alive() and _lines(log) < done + SHARD_SIZE:
            time.sleep(0.01)
        time.sleep(randomness.uniform(0, 0.1))
        process.kill()
        process.join()
        assert not _store(folder).damaged
    assert len(_store(folder)) < entries
    assert fill(folder, entries, 0, log).computed > 0
    assert _lines(log) <= entries + kills * SHARD_SIZE
    _check_complete(folder, entries)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_crash_at_any_write_costs_a_block(tmp_path: Path) -> None:
    entries, deaths, status = 2 * SHARD_SIZE, 0, DIED
    while status == DIED:
        folder, log = tmp_path / f"cache {deaths}", tmp_path / f"log {deaths}"
        status = die_before_write(deaths, partial(fill, folder, entries, 0, log))
        assert not _store(folder).damaged
        fill(folder, entries, 0, log)
        assert _lines(log) <= entries + SHARD_SIZE
        for left in folder.rglob("*.partial"):  # a day later
            os.utime(left, (0, 0))
        _store(folder).clean()
        _check_complete(folder, entries)
        deaths += 1
    assert status == 0
    assert deaths > FEWEST


def _lines(log: Path) -> int:
    return len(log.read_text().split()) if log.exists() else 0


def test_a_block_of_a_process_that_dies_is_made_by_the_one_that_waits(tmp_path: Path) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log"
    holder = processes.start(fill, folder, SHARD_SIZE, 0.5, log)
    while not log.exists():
        time.sleep(0.02)
    waiter = processes.start(fill, folder, SHARD_SIZE, 0, tmp_path / "other log")
    time.sleep(0.3)
    holder.kill()
    holder.join()
    waiter.join(60)
    assert waiter.exitcode == 0
    assert (tmp_path / "other log").read_text().split() == [key(number) for number in range(SHARD_SIZE)]
    _check_complete(folder, SHARD_SIZE)


def test_what_is_there_is_reused_and_what_is_damaged_is_made_again(tmp_path: Path) -> None:
    folder, log, entries = tmp_path / "cache", tmp_path / "log", 20
    assert fill(folder, entries, 0, log) == Share(computed=20)
    assert fill(folder, entries, 0, log) == Share(reused=20)
    assert fill(folder, entries + 5, 0, log) == Share(computed=5, reused=20)
    shard = next(path for path in _store(folder).folder.glob("*.safetensors") if b"000009:0" in path.read_bytes())
    os.truncate(shard, shard.stat().st_size - 1)
    _store(folder).clean()
    assert fill(folder, entries, 0, log) == Share(computed=SHARD_SIZE, reused=entries - SHARD_SIZE)
    _check_complete(folder, entries)


def test_entries_that_cannot_be_made_are_counted_and_progress_reaches_the_end(tmp_path: Path) -> None:
    def make(missing: Mapping[str, int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        yield from ((name, entry(number)) for name, number in missing.items() if number % 5)

    told: list[int] = []
    share = fill_store(_store(tmp_path), blocks(20), make, told.append)
    assert share == Share(computed=16, failed=4)
    assert sum(told) == 20
    told.clear()
    assert fill_store(_store(tmp_path), blocks(20), make, told.append) == Share(reused=16, failed=4)
    assert sum(told) == 20


@pytest.fixture
def lockless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that has no locks, as some network shares: there the file itself is the lock."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_claim_outlives_a_killed_machine_by_minutes_only(
    tmp_path: Path, lockless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_CHECKED_SECONDS", 0.1)
    (block,) = blocks(SHARD_SIZE)
    marker = _store(tmp_path / "cache").folder / "claims" / f"{block.name}.lock"
    marker.parent.mkdir(parents=True)
    marker.write_text("1443\nelsewhere\n1")
    with claim(_store(tmp_path / "cache").folder, block.name, wait=False) as beat:
        assert beat is None, "it may live"
    hour_ago = time.time() - 3600
    os.utime(marker, (hour_ago, hour_ago))
    assert fill(tmp_path / "cache", SHARD_SIZE, 0, tmp_path / "log") == Share(computed=SHARD_SIZE)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_claim_that_is_worked_on_stays_young(tmp_path: Path, lockless: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_BEAT_SECONDS", 0.0)
    with claim(tmp_path, "block", wait=True) as beat:
        assert beat is not None
        (marker,) = (tmp_path / "claims").glob("block*")
        os.utime(marker, (0, 0))
        beat()
        assert time.time() - marker.stat().st_mtime < 60
        with claim(tmp_path, "block", wait=False) as other:
            assert other is None


def test_a_share_on_which_nothing_can_be_locked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "claims").write_text("a file where the folder should be")
    with pytest.raises(CacheError, match="cannot be written"), claim(tmp_path, "block", wait=True):
        pass


@pytest.mark.parametrize("ahead", [-2000.0, 3600.0 * 24 * 365])
def test_a_claim_whose_time_is_wrong_is_watched_and_taken_over(
    tmp_path: Path, lockless: None, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    """Clocks of machines differ; one that jumped far ahead would hold it for ever."""
    monkeypatch.setattr(claims, "_DEAD_SECONDS", 1000.0 if ahead < 0 else 0.3)
    monkeypatch.setattr(claims, "_CHECKED_SECONDS", 0.1)
    (tmp_path / "claims").mkdir()
    marker = tmp_path / "claims" / "block.lock"
    marker.write_text(f"{2**22 + 1}\nanother-machine\n")
    os.utime(marker, (time.time() + ahead,) * 2)
    with claim(tmp_path, "block", wait=True) as beat:
        assert beat is not None
