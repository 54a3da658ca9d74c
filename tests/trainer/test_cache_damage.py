"""A bit of the cache that is not as it was written is found, or changes nothing that is trained on."""

import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ipadapter_core.errors import IPAdapterError
from ipadapter_trainer.cache import store as stores
from ipadapter_trainer.cache.store import CacheError, CacheStore
from ipadapter_trainer.data.digests import DigestMemo
from ipadapter_trainer.data.pictures import FilePicture, picture_digest
from support.pictures import write_folder

RECIPE = {"made": "up"}
DATA_BITS = 200
STRIDE = 7  # bits: each place within a byte comes equally often


def entry(number: int) -> dict[str, Tensor]:
    return {"mean": torch.full((4, 2, 3), number / 8).half(), "sizes": torch.arange(6) + number}


ENTRIES = {f"{number:04x}:{variant}": entry(2 * number + variant) for number in range(4) for variant in range(2)}


@pytest.fixture
def store(tmp_path: Path) -> CacheStore:
    """Of two shards, each with one variant."""
    store = CacheStore(tmp_path, "latents", RECIPE)
    for variant in "01":
        store.write({key: parts for key, parts in ENTRIES.items() if key.endswith(variant)})
    return store


def flipped(path: Path, bits: Iterator[int] | range | list[int]) -> Iterator[int]:
    """The file with each bit flipped in turn."""
    whole = path.read_bytes()
    for bit in bits:
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        yield bit
    path.write_bytes(whole)


def what_is_read(folder: Path) -> str:
    """Whether a run would be refused, would make entries again, or reads what was written."""
    opened, lacks = CacheStore(folder, "latents", RECIPE), False
    try:
        for key, parts in ENTRIES.items():
            try:
                read = opened.get(key)
            except KeyError:
                lacks = True
                continue
            assert read.keys() == parts.keys()
            assert all(torch.equal(read[part], parts[part]) for part in parts), f"{key} was read as another"
    except CacheError:
        return "refused"
    return "made again" if lacks else "as written"


def test_no_flipped_bit_of_a_shard_is_read(store: CacheStore, tmp_path: Path) -> None:
    path, *_ = sorted(store.folder.glob("*.safetensors"))
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    data = random.Random(0).sample(range(8 * header, 8 * path.stat().st_size), DATA_BITS)
    found: Counter[tuple[str, str]] = Counter()
    for bit in flipped(path, [*range(0, 8 * header, STRIDE), *data]):
        outcome = what_is_read(tmp_path)
        found["header" if bit < 8 * header else "data", outcome] += 1
        if outcome == "refused":  # what the message advises mends it
            assert path in [damaged for damaged, problem in store.check() if problem]
    assert found["data", "refused"] == DATA_BITS
    assert found["header", "made again"] > found["header", "as written"], (
        "only blanks and the sum of the whole are alike"
    )


def test_a_shard_of_an_earlier_version_is_looked_at_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "written_sums", lambda _: {})
    store = CacheStore(tmp_path, "latents", RECIPE)
    store.write(ENTRIES)
    assert what_is_read(tmp_path) == "as written"
    (path,) = store.folder.glob("*.safetensors")
    size = 8 * path.stat().st_size
    assert [what_is_read(tmp_path) for _ in flipped(path, [size - 1, size - 200])] == ["refused"] * 2


def test_a_digest_whose_file_was_damaged_is_never_anothers(tmp_path: Path) -> None:
    pictures = [FilePicture(path) for path in write_folder(tmp_path / "pictures", 6)]
    path = tmp_path / "digests.sqlite"
    memo = DigestMemo(path)
    wanted = [memo.digest(picture) for picture in pictures]
    assert len(set(wanted)) == len(wanted)
    memo.flush()
    found: Counter[str] = Counter()
    for _ in flipped(path, random.Random(0).sample(range(8 * path.stat().st_size), 1500)):
        damaged = DigestMemo(path)
        try:
            read = [damaged.digest(picture) for picture in pictures]
        except IPAdapterError:
            found["refused"] += 1
            continue
        assert read == wanted
        found["as written"] += 1
    assert found["refused"]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE digests SET digest = (SELECT digest FROM digests LIMIT 1)")
    assert [DigestMemo(path).digest(picture) for picture in pictures] == wanted


def test_a_digest_is_of_the_pictures_bytes(tmp_path: Path) -> None:
    (picture,) = (FilePicture(path) for path in write_folder(tmp_path, 1))
    assert DigestMemo(tmp_path / "memo").digest(picture) == picture_digest(picture.read())
