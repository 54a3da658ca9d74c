"""A store gives back what was written, never mixes recipes, and survives damage, kills, forks and pickling."""

import logging
import os
import pickle
from pathlib import Path

import pytest
import torch

from ipadapter_trainer.cache.index import KeyIndex
from ipadapter_trainer.cache.store import CacheError, CacheStore, prune

RECIPE = {"encoder": "a", "layer": -2}


def _entries(count: int, start: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    return {
        f"{number:04x}:0": {"mean": torch.full((4, 2, 3), number / 8).half(), "sizes": torch.arange(6) + number}
        for number in range(start, start + count)
    }


def _store(folder: Path, **changes: object) -> CacheStore:
    return CacheStore(folder, "latents", {**RECIPE, **changes})


def _shards(store: CacheStore) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


def test_entries_come_back_as_written(tmp_path: Path) -> None:
    store = _store(tmp_path)
    entries = _entries(5)
    store.write(entries)
    store.write(_entries(3, start=5))
    for reader in (store, _store(tmp_path), pickle.loads(pickle.dumps(store))):
        assert len(reader) == 8
        for key, entry in entries.items():
            read = reader.get(key)
            assert read.keys() == entry.keys()
            assert all(torch.equal(read[part], entry[part]) and read[part].dtype == entry[part].dtype for part in entry)
    assert "0009:0" not in store
    with pytest.raises(KeyError):
        store.get("0009:0")


def test_opening_a_store_writes_nothing(tmp_path: Path) -> None:
    assert len(_store(tmp_path / "cache")) == 0
    assert not list(tmp_path.iterdir())


def test_another_recipe_is_another_folder_listed_as_stale_and_pruned(tmp_path: Path) -> None:
    old, new = _store(tmp_path), _store(tmp_path, layer=-1)
    old.write(_entries(2))
    CacheStore(tmp_path, "features", RECIPE).write(_entries(1))
    assert "0000:0" not in new
    (stale,) = new.stale()
    assert (stale.path, stale.recipe) == (old.folder, RECIPE)
    assert stale.nbytes == old.nbytes > 0
    assert prune([stale]) == stale.nbytes
    assert not new.stale()
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["features"]


def test_other_processes_shards_are_seen_after_refresh(tmp_path: Path) -> None:
    store, other = _store(tmp_path), _store(tmp_path)
    other.write(_entries(2))
    assert "0001:0" not in store
    store.refresh()
    assert "0001:0" in store
    assert len(store) == 2


@pytest.mark.parametrize("size", [0, 4, 300, -1])
def test_a_truncated_shard_is_reported_once_and_its_entries_are_missing(
    tmp_path: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = _store(tmp_path)
    store.write(_entries(2))
    store.write(_entries(2, start=2))
    path = next(path for path in _shards(store) if b'"0000:0/' in path.read_bytes())
    path.write_bytes(path.read_bytes()[:size])
    with caplog.at_level(logging.WARNING):
        damaged = _store(tmp_path)
        damaged.refresh()
    assert len(caplog.records) == 1
    assert path.name in caplog.text
    assert "0000:0" not in damaged
    assert torch.equal(damaged.get("0003:0")["sizes"], torch.arange(6) + 3)
    damaged.clean()
    assert _shards(damaged) == [other for other in _shards(store) if other != path]


def test_check_finds_a_flipped_bit_and_values_without_end(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.write(_entries(2))
    (path,) = _shards(store)
    assert [problem for _, problem in store.check()] == [None]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    ((_, problem),) = store.check()
    assert problem is not None
    assert "SHA-256" in problem
    store.remove([path])
    store.write({"0000:0": {"mean": torch.tensor([torch.inf]), "sizes": torch.arange(6)}})
    ((_, problem),) = store.check()
    assert problem is not None
    assert "0000:0/mean" in problem


def test_an_unfinished_file_is_no_shard_and_is_replaced_by_its_next_writer(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.write(_entries(1))
    partial = store.folder / "block-7.partial"
    partial.write_bytes(_shards(store)[0].read_bytes()[:100])
    assert len(_store(tmp_path)) == 1
    store.write(_entries(1, start=1), name="block-7")
    assert not list(store.folder.glob("*.partial"))
    assert len(_store(tmp_path)) == 2


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"cannot be written .*cache\.path"):
        _store(tmp_path / "file").write(_entries(1))


def test_a_removed_shard_is_said(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.write(_entries(1))
    _shards(store)[0].unlink()
    with pytest.raises(CacheError, match="run `ipadapter cache CONFIG` again"):
        store.get("0000:0")


def test_the_index_finds_every_key_in_its_latest_shard() -> None:
    index = KeyIndex()
    index.add((f"key {number}" for number in range(1000)), 0)
    index.settle()
    index.add((f"key {number}" for number in range(500, 1500)), 1)
    before = [index.find(f"key {number}") for number in range(0, 1600, 7)]
    assert len(index) == 1500
    after = [index.find(f"key {number}") for number in range(0, 1600, 7)]
    assert before == after == [0 if n < 500 else 1 if n < 1500 else None for n in range(0, 1600, 7)]


def test_a_check_reads_the_data_again_even_if_nothing_looks_changed(tmp_path: Path) -> None:
    store = _store(tmp_path)
    store.write(_entries(2))
    (shard,) = _shards(store)
    assert [problem for _, problem in store.check()] == [None]
    before, content = shard.stat(), bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    ((_, problem),) = store.check()
    assert problem is not None
    assert "is no usable cache file: tensor data whose SHA-256 is not" in problem
