"""Shards are read without overlap between processes and workers, in an order that a resumed run repeats."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from ipadapter_trainer.batch import Batch, Skipped
from ipadapter_trainer.config import Config
from ipadapter_trainer.data.loader import World, open_batches
from ipadapter_trainer.data.records import DataError
from ipadapter_trainer.data.shard_counts import ShardCounts
from ipadapter_trainer.data.shards import Shards
from ipadapter_trainer.data.sources import open_source
from support.pictures import GEOMETRY, encoded, gradient, run_config, write_shard, write_shards

ALONE = World()
SHARDS, PER_SHARD = 4, 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, SHARDS, PER_SHARD)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two aspect ratios, some cut off after the header, some not pictures at all."""
    folder = tmp_path_factory.mktemp("mixed")
    for shard in range(SHARDS):
        samples = {}
        for number in range(shard * 10, shard * 10 + 10):
            data = encoded(gradient(64, 64 if number % 3 else 128, number))
            damaged = {4: data[:80], 7: b"nothing"}.get(number % 10, data)
            samples[f"{number:04}"] = {"png": damaged, "txt": f"picture {number}".encode()}
        write_shard(folder / f"{shard:02}.tar", samples)
    return folder


def stream_config(folder: Path, path: Path, workers: int = 0, **data: object) -> Config:
    options = {"workers": workers, "shuffle_buffer": 4, **data}
    return run_config(folder, path, data=options, objective={"drop_text": 0.0, "drop_both": 0.0})


def with_batch(config: Config, batch_size: int) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"batch_size": batch_size})})


def read(config: Config, count: int, world: World = ALONE, start: int = 0) -> list[Batch]:
    return list(islice(open_batches(config, open_source(config.data), world, GEOMETRY, start), count))


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2), (4, 0)])
def test_an_epoch_reads_every_sample_once_over_processes_and_workers(
    shards: Path, tmp_path: Path, processes: int, workers: int
) -> None:
    config = stream_config(tmp_path, shards, workers)
    each = SHARDS * PER_SHARD // processes // 2
    found = [read(config, each, World(rank, processes)) for rank in range(processes)]
    assert Counter(key for batches in found for key in keys(batches)).most_common(1)[0][1] == 1
    assert sum(len(keys(batches)) for batches in found) == SHARDS * PER_SHARD
    positions = sorted(position for batches in found for batch in batches for position in batch.positions)
    assert positions == list(range(SHARDS * PER_SHARD))


def test_captions_stay_with_their_pictures(shards: Path, tmp_path: Path) -> None:
    for batch in read(stream_config(tmp_path, shards), 6):
        for index, caption in enumerate(batch.captions):
            blue = round((float(batch.pixels[index, 2].mean()) + 1) * 127.5)
            assert blue == int(caption.split()[1]) * 10 % 256


def test_epochs_are_shuffled_anew_and_alike_in_every_run(shards: Path, tmp_path: Path) -> None:
    config = stream_config(tmp_path, shards)
    both = keys(read(config, SHARDS * PER_SHARD))
    first, second = both[: len(both) // 2], both[len(both) // 2 :]
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != sorted(first)
    assert keys(read(config, SHARDS * PER_SHARD)) == both


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 3, 8])
@pytest.mark.parametrize("rank", [0, 1])
def test_starting_at_a_step_gives_exactly_what_an_uninterrupted_run_gives(
    mixed: Path, tmp_path: Path, workers: int, start: int, rank: int
) -> None:
    config = stream_config(tmp_path, mixed, workers, buckets=True, resolution=32, crop="random")
    whole = read(config, start + 3, World(rank, 2))[start:]
    resumed = read(config, 3, World(rank, 2), start)
    for one, other in zip(whole, resumed, strict=True):
        assert (one.positions, one.keys, one.captions, one.skipped) == (
            other.positions, other.keys, other.captions, other.skipped,
        )  # fmt: skip
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.noise, other.noise)


def test_buckets_are_filled_one_by_one_and_broken_pictures_left_out(mixed: Path, tmp_path: Path) -> None:
    found = read(stream_config(tmp_path, mixed, buckets=True, resolution=32), 16)
    assert {tuple(batch.pixels.shape[2:]) for batch in found} == {(32, 32), (24, 48)}
    assert not any(int(key[-1]) in (4, 7) for key in keys(found))
    for batch in found:
        assert len({tuple(sizes) for sizes in batch.sizes[:, :2].tolist()}) == 1, "stand-ins are of the bucket too"
    skipped = {(item.key[-1], item.path[-3:]) for batch in found for item in batch.skipped}
    assert skipped == {("4", "png"), ("7", "png")}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_broken_picture_changes_no_later_batch(mixed: Path, tmp_path: Path, batch_size: int) -> None:
    config = stream_config(tmp_path, mixed)
    config = with_batch(config, batch_size)
    found = read(config, 12)
    places = Counter(key for key in keys(found))
    assert not any(key.endswith("4") for key in places)
    assert max(places.values()) <= 3, "a stand-in comes again in its own place"


def test_a_shard_that_is_cut_off_ends_there_and_is_listed(shards: Path, tmp_path: Path) -> None:
    data = (shards / "00.tar").read_bytes()
    (tmp_path / "00.tar").write_bytes(data[: len(data) // 3])
    (tmp_path / "01.tar").write_bytes((shards / "01.tar").read_bytes())
    source = open_source(stream_config(tmp_path, tmp_path).data)
    assert isinstance(source, Shards)
    items = list(source.read())
    broken = [item for item in items if isinstance(item, Skipped)]
    assert [Path(item.path).name for item in broken] == ["00.tar"]
    assert len(items) - 1 > PER_SHARD
    assert [item.key for item in items if item.key[:2] == "01"]


def test_too_few_shards_for_the_processes_is_an_error(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="4 shards for 5 processes"):
        read(stream_config(tmp_path, shards), 1, World(0, 5))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_without_a_shard_are_not_started(shards: Path, tmp_path: Path) -> None:
    assert len(set(keys(read(stream_config(tmp_path, shards, workers=9), 12)))) == SHARDS * PER_SHARD


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_without_a_usable_picture_are_an_error_and_no_traceback(tmp_path: Path, workers: int) -> None:
    write_shard(tmp_path / "00.tar", {"a": {"png": b"nothing", "txt": b"x"}})
    with pytest.raises(DataError, match=r"^Found: no picture that can be used in .*00\.tar"):
        read(stream_config(tmp_path, tmp_path, workers), 1)


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 20 square pictures, of which each has one wide one besides, and one a tall one."""
    folder = tmp_path_factory.mktemp("rare")
    for shard in range(2):
        sizes = [(16, 16)] * 20 + [(16, 32)] + [(32, 16)] * shard
        samples = {f"{number:02}": {"png": encoded(gradient(*size)), "txt": b"x"} for number, size in enumerate(sizes)}
        write_shard(folder / f"{shard:02}.tar", samples)
    return folder


@pytest.mark.parametrize("processes", [1, 2])
def test_every_picture_comes_equally_often_whatever_its_size(rare: Path, tmp_path: Path, processes: int) -> None:
    config = with_batch(stream_config(tmp_path, rare, buckets=True, resolution=16), 2)
    total, epochs = 43, 40
    found = [read(config, total * epochs // 2 // processes, World(rank, processes)) for rank in range(processes)]
    times = Counter(key for batches in found for key in keys(batches))
    sizes = {"wide": ["00.tar/20", "01.tar/20"], "tall": ["01.tar/21"]}
    for rare_keys in sizes.values():
        share = sum(times[key] for key in rare_keys) / times.total()
        assert share == pytest.approx(len(rare_keys) / total, rel=0.1)
    square = [times[key] for key in times if key[-2:] < "20"]
    assert len(square) == 40
    assert max(square) < 1.3 * min(square)


@pytest.mark.parametrize("start", [0, 1, 5, 11, 21, 22, 60])
def test_rare_sizes_change_nothing_about_going_on(rare: Path, tmp_path: Path, start: int) -> None:
    config = with_batch(stream_config(tmp_path, rare, buckets=True, resolution=16), 4)
    whole = read(config, start + 30)[start:]
    assert [batch.keys for batch in read(config, 30, start=start)] == [batch.keys for batch in whole]


def test_epochs_too_small_for_a_batch_are_passed_over_and_what_is_broken_in_them_is_listed(tmp_path: Path) -> None:
    for shard in range(3):
        picture = {"png": encoded(gradient(16, 16)), "txt": b"x"}
        write_shard(tmp_path / f"{shard}.tar", {"a": picture, "b": {"png": b"nothing", "txt": b"x"}})
    config = with_batch(stream_config(tmp_path, tmp_path, buckets=True), 8)
    found = read(config, 5)
    assert {key for batch in found for key in batch.keys} == {"0.tar/a", "1.tar/a", "2.tar/a"}
    assert sum(len(batch.skipped) for batch in found) == pytest.approx(5 * 8, abs=8), "three in each epoch of three"
    resumed = [read(config, 1, start=start)[0] for start in range(5)]
    assert [(batch.keys, batch.skipped) for batch in resumed] == [(batch.keys, batch.skipped) for batch in found]


@pytest.mark.parametrize("start", [32, 40])
def test_whole_epochs_before_a_start_are_counted_off_and_not_read(mixed: Path, tmp_path: Path, start: int) -> None:
    config = stream_config(tmp_path, mixed, buckets=True, resolution=32)
    whole = read(config, start + 3)

    class Counted(Shards):
        def read(self, urls=None):
            opened.extend(urls)
            return super().read(urls)

    opened: list[str] = []
    source = open_source(config.data)
    resumed = list(islice(open_batches(config, Counted(source.urls, config.data), ALONE, GEOMETRY, start), 3))
    assert keys(resumed) == keys(whole[start:])
    assert len(opened) == len(set(opened)), "the epoch of the start only"


@pytest.mark.parametrize("batch_size", [4, 5, 64])
def test_an_epochs_last_batch_is_filled_up_with_its_own_records(shards: Path, tmp_path: Path, batch_size: int) -> None:
    config = stream_config(tmp_path, shards)
    config = with_batch(config, batch_size)
    epoch = -(-SHARDS * PER_SHARD // batch_size)
    found = Counter(keys(read(config, epoch)))
    assert len(found) == SHARDS * PER_SHARD
    assert found.total() == epoch * batch_size


def test_what_is_broken_at_the_end_of_an_epoch_is_listed_with_it(tmp_path: Path) -> None:
    picture = {"png": encoded(gradient(16, 16)), "txt": b"x"}
    write_shard(tmp_path / "00.tar", {"a": picture, "b": picture, "c": {"png": b"nothing", "txt": b"x"}})
    for batch in read(stream_config(tmp_path, tmp_path, shuffle_buffer=1), 2):
        assert [Path(item.path).name for item in batch.skipped] == ["c.png"]


def test_counts_are_shared_by_readers_of_the_same_recipe_only(tmp_path: Path) -> None:
    writer, reader, other = (ShardCounts(tmp_path / "counts.jsonl", recipe) for recipe in ("512", "512", "1024"))
    writer.add("a.tar", Counter({(512, 512): 5, (384, 640): 1}))
    writer.add("b.tar", Counter({(512, 512): 2}))
    for counts in (reader, other):
        counts.load()
    found = [counts.of(["a.tar", "b.tar"]) for counts in (writer, reader, other)]
    assert found == [Counter({(512, 512): 7, (384, 640): 1})] * 2 + [None]


def test_counts_whose_last_line_was_cut_off_are_counted_again(tmp_path: Path) -> None:
    counts = ShardCounts(tmp_path / "counts.jsonl", "512")
    counts.add("a.tar", Counter({(512, 512): 5}))
    counts.add("b.tar", Counter({(512, 512): 7}))
    counts.path.write_bytes(counts.path.read_bytes()[:-9])
    for _ in range(2):
        resumed = ShardCounts(counts.path, "512")
        resumed.load()
        resumed.add("b.tar", Counter({(512, 512): 7}))
        assert resumed.of(["a.tar", "b.tar"]) == Counter({(512, 512): 12})
