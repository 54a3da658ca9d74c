"""What the training loop reads: the same samples however it is split up, stopped or disturbed by broken pictures."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.pictures import GEOMETRY, gradient, load_records, run_config, write_folder
from trainer.batch import Batch, Skipped
from trainer.config import Config
from trainer.data.loader import World, held_out_batches, open_batches
from trainer.data.order import Order
from trainer.data.pictures import decode
from trainer.data.prepare import bucket_of, caption_digest, entry_key, place_target, target_pixels, variant_generator
from trainer.data.records import DataError
from trainer.data.sample import Stores
from trainer.data.skips import SkipLog, read_skipped

ALONE = World()
RANDOM = {"crop": "random", "flip": 0.5, "augment": {"crop_scale": 0.3, "color": 0.3}}


def batches(config: Config, world: World = ALONE, start: int = 0, stores: Stores | None = None) -> Iterator[Batch]:
    return open_batches(config, load_records(config.data), world, GEOMETRY, start, stores)


def read(config: Config, count: int, world: World = ALONE, start: int = 0) -> list[Batch]:
    return list(islice(batches(config, world, start), count))


def samples(found: list[Batch]) -> dict[int, dict[str, Any]]:
    """Every part of every sample by position."""
    parts = {}
    for batch in found:
        for index, position in enumerate(batch.positions):
            values = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name != "skipped"}
            parts[position] = {name: value[index] for name, value in values.items() if value is not None}
    return parts


def assert_same(one: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]]) -> None:
    assert one.keys() == other.keys()
    for position, parts in one.items():
        assert parts.keys() == other[position].keys()
        for name, value in parts.items():
            assert (
                torch.equal(value, other[position][name])
                if isinstance(value, Tensor)
                else (value == other[position][name])
            ), f"{name} of sample {position}"


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("square")
    write_folder(folder, 7, size=(20, 24))
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixed")
    for number, size in enumerate([(64, 64), (64, 128), (128, 64)]):
        write_folder(folder / str(number), 3 + number, size=size)
    return folder


@pytest.fixture(params=["square", "mixed"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    """A run over pictures of one size, and one with buckets."""
    data = {**RANDOM, "buckets": True, "resolution": 32} if request.param == "mixed" else RANDOM
    return run_config(tmp_path, request.getfixturevalue(request.param), data=data)


def with_batch(config: Config, batch_size: int, accumulate: int = 1) -> Config:
    train = config.train.model_copy(update={"batch_size": batch_size, "accumulate": accumulate})
    return config.model_copy(update={"train": train})


def test_two_processes_see_what_one_with_twice_the_batch_sees(config: Config) -> None:
    one = read(with_batch(config, 4), 6)
    two = [batch for rank in (0, 1) for batch in read(with_batch(config, 2), 6, World(rank, 2))]
    assert_same(samples(one), samples(two))


def test_starting_at_a_step_gives_what_an_uninterrupted_run_gives(config: Config) -> None:
    config = with_batch(config, 2, accumulate=3)
    whole = samples(read(config, 12))
    resumed = samples(read(config, 6, start=2))
    assert sorted(resumed) == list(range(12, 24))
    assert_same(resumed, {position: whole[position] for position in resumed})


def test_worker_processes_change_nothing(config: Config) -> None:
    plain = samples(read(config, 5, start=1))
    data = config.data.model_copy(update={"workers": 2})
    assert_same(samples(read(config.model_copy(update={"data": data}), 5, start=1)), plain)


def test_another_seed_gives_another_order_and_other_crops(config: Config) -> None:
    train = config.train.model_copy(update={"seed": 1})
    one, other = samples(read(config, 6)), samples(read(config.model_copy(update={"train": train}), 6))
    assert [sample["keys"] for sample in one.values()] != [sample["keys"] for sample in other.values()]


def test_batches_have_one_size_each_and_sdxl_sizes_that_agree(config: Config) -> None:
    for batch in read(config, 8):
        assert batch.pixels is not None
        assert batch.time_ids[:, 4:].tolist() == [list(batch.pixels.shape[2:])] * 2
        assert batch.noise.shape == (2, 4, batch.pixels.shape[2] // 8, batch.pixels.shape[3] // 8)
        assert batch.reference_pixels is not None
        assert batch.reference_pixels.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("global_batch", [1, 2, 5])
def test_an_epoch_has_every_record_once_and_fills_up_within_buckets(global_batch: int) -> None:
    members = {(8, 8): [0, 2, 4, 6, 8], (8, 16): [1, 3], (16, 8): [5]}
    order = Order(0, members, global_batch)
    for epoch in (0, 1):
        start = epoch * order.epoch_length
        found = [order.at(position) for position in range(start, start + order.epoch_length)]
        assert {number for number, _ in found} == {number for numbers in members.values() for number in numbers}
        assert all(number in members[bucket] for number, bucket in found)
        for first in range(0, len(found), global_batch):
            assert len({bucket for _, bucket in found[first : first + global_batch]}) == 1
    assert [order.at(p) for p in range(8)] != [order.at(p + order.epoch_length) for p in range(8)]
    sequences = {
        tuple(order.at(epoch * order.epoch_length + p)[1] for p in range(order.epoch_length)) for epoch in range(9)
    }
    assert len(sequences) > 1, "batches of a bucket come elsewhere in each epoch"
    assert Order(0, {(8, 8): range(7)}, 4).epoch_length == 7, "one bucket needs no filling up"


def test_dropped_text_is_empty_and_the_rest_is_the_pictures_own(square: Path, tmp_path: Path) -> None:
    config = run_config(tmp_path, square, objective={"drop_text": 0.4, "drop_image": 0.3, "drop_both": 0.0})
    found = samples(read(config, 40))
    empty = sum(sample["captions"] == "" for sample in found.values())
    assert 20 < empty < 44
    assert 12 < sum(bool(sample["drop_image"]) for sample in found.values()) < 36
    for sample in found.values():
        assert sample["captions"] in ("", f"picture {int(sample['keys'][:2])}")


def break_pictures(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.write_bytes(path.read_bytes()[:60])


def test_broken_pictures_are_replaced_the_same_way_in_every_split(tmp_path: Path) -> None:
    paths = write_folder(tmp_path / "data", 6)
    break_pictures(tmp_path / "data", "01.png")
    paths[4].unlink()
    config = run_config(tmp_path, tmp_path / "data")
    lines = (tmp_path / "list.jsonl").open("w")
    lines.writelines(f"{json.dumps({'image': str(path), 'text': 'x'})}\n" for path in paths)
    lines.close()
    config = run_config(tmp_path, tmp_path / "list.jsonl")
    found = read(with_batch(config, 4), 6)
    keys = Counter(Path(key).name for batch in found for key in batch.keys)
    assert keys.keys() == {"00.png", "02.png", "03.png", "05.png"}
    assert keys.total() == 24
    reasons = {Path(skipped.path).name: skipped.reason for batch in found for skipped in batch.skipped}
    assert reasons.keys() == {"01.png", "04.png"}
    assert reasons["04.png"] == "no such file"
    split = [batch for rank in (0, 1) for batch in read(with_batch(config, 2), 6, World(rank, 2))]
    assert_same(samples(found), samples(split))


def test_a_broken_picture_is_replaced_by_one_of_its_size(mixed: Path, tmp_path: Path) -> None:
    for number, size in enumerate([(64, 64), (64, 128)]):
        write_folder(tmp_path / "data" / str(number), 3, size=size)
    break_pictures(tmp_path / "data", "0/00.png", "1/00.png")
    (tmp_path / "data" / "1" / "01.png").write_bytes(b"")
    config = run_config(tmp_path, tmp_path / "data", data={"buckets": True, "resolution": 32})
    found = read(config, 8)
    keys = {key for batch in found for key in batch.keys}
    assert keys == {"0/01.png", "0/02.png", "1/02.png"}
    assert {Path(item.path).name for item in found[0].skipped} >= {"01.png"}, "found when the sizes were read"


@pytest.mark.parametrize("workers", [0, 2])
def test_data_without_a_usable_picture_is_an_error_and_no_traceback(tmp_path: Path, workers: int) -> None:
    for path in write_folder(tmp_path / "data", 3):
        path.write_bytes(b"")
    for buckets in (False, True):
        config = run_config(tmp_path, tmp_path / "data", data={"workers": workers, "buckets": buckets})
        with pytest.raises(DataError, match=r"^Found: (1001 pictures in a row|none of 3 pictures).*not a picture"):
            read(config, 1)


def skipping(*names: str, read: int = 1) -> Batch:
    nothing = torch.zeros(0)
    return Batch(
        positions=(0,) * read, keys=(), captions=(), drop_image=nothing, latent_noise=nothing, noise=nothing,
        timesteps=nothing, time_ids=nothing, skipped=tuple(Skipped(name, f"/{name}", "cut") for name in names),
    )  # fmt: skip


def test_each_broken_picture_is_listed_once_across_processes_and_sessions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run" / "skipped.jsonl"
    first, second = (SkipLog(path, 0.5, 100) for _ in range(2))
    with caplog.at_level(logging.WARNING):
        first.add(skipping("a", "b", "a"))
        second.add(skipping("b", "c"))
        first.add(skipping("a", "c", "d"))
        SkipLog(path, 0.5, 100).add(skipping("a", "e"))
    assert [skipped.path for skipped in read_skipped(path)] == ["/a", "/b", "/c", "/d", "/e"]
    assert json.loads(path.read_text().splitlines()[0]) == {"key": "a", "path": "/a", "reason": "cut"}
    assert len(first) == 4
    assert caplog.text.count("skipped /") == 5


def test_too_many_broken_pictures_end_the_run(tmp_path: Path) -> None:
    log = SkipLog(tmp_path / "skipped.jsonl", 0.05, 40)
    log.add(skipping("a", "b"))
    with pytest.raises(DataError, match=r"3 of 40 pictures cannot be used, the first /a \(cut\).*0\.05"):
        log.add(skipping("b", "c"))
    resumed = SkipLog(tmp_path / "skipped.jsonl", 0.05, 40)
    resumed.add(skipping("c"))
    assert len(resumed) == 1, "what an earlier session met may be repaired"


def test_of_a_stream_the_share_counts_after_a_hundred_samples(tmp_path: Path) -> None:
    log = SkipLog(tmp_path / "skipped.jsonl", 0.05, None)
    log.add(skipping("a", "b", "c", "d", "e", "f", read=90))
    with pytest.raises(DataError, match=r"7 of 10\d pictures read so far"):
        log.add(skipping("g", read=5))


class Store:
    """Entries in memory."""

    def __init__(self, entries: dict[str, dict[str, Tensor]]) -> None:
        self.get = entries.__getitem__


def cached(config: Config, missing: str = "") -> Stores:
    """Stores whose latents are the pixels' means over latent cells and whose features are one pixel."""
    latents, features, text = {}, {}, {"": 0}
    stores = Stores()
    for number, record in enumerate(load_records(config.data)):
        if record.key == missing:
            continue
        image, digest = decode(record.image), stores.digests.digest(record.image)
        for variant in range(config.cache.variants):
            generator = variant_generator(config.train.seed, digest, variant, "target")
            placement = place_target(image, config.data, bucket_of(record.image, config.data), generator)
            mean = torch.nn.functional.avg_pool2d(target_pixels(image, placement), 8)
            mean = torch.cat((mean, mean[:1]))
            latents[entry_key(digest, variant)] = {"mean": mean, "std": mean * 0, "sizes": placement.sizes}
            features[entry_key(digest, variant)] = {"features": torch.tensor([number, variant])}
        text[record.caption] = number
    texts = {caption_digest(caption): {"text": torch.full((2, 3), float(n))} for caption, n in text.items()}
    return Stores(Store(latents), Store(features), Store(texts))


def test_a_cached_run_reads_the_same_samples_in_the_same_sizes(config: Config) -> None:
    config = config.model_copy(update={"cache": config.cache.model_copy(update={"variants": 3})})
    raw = samples(read(config, 6))
    found = samples(list(islice(batches(config, stores=cached(config)), 6)))
    for position, sample in found.items():
        for name in ("keys", "captions", "noise", "latent_noise", "timesteps", "drop_image"):
            same = sample[name] == raw[position][name]
            assert same.all() if isinstance(same, Tensor) else same
        assert sample["latent_mean"].shape == sample["noise"].shape
        assert sample.keys() >= {"latent_std", "features", "text", "time_ids"}
        assert not sample.keys() & {"pixels", "reference_pixels", "pooled"}
        assert (sample["captions"] == "") <= bool((sample["text"] == 0).all())
    assert {int(sample["features"][1]) for sample in found.values()} == {0, 1, 2}


def test_a_cached_mask_is_cropped_and_mirrored_as_its_latents_were(tmp_path: Path) -> None:
    rows = []
    for number in range(4):  # the red channel of the picture is its mask
        image = gradient(16, 48, number)
        image.save(tmp_path / f"{number}.png")
        image.getchannel("R").save(tmp_path / f"mask{number}.png")
        rows.append({"image": f"{number}.png", "mask": f"mask{number}.png", "text": "x"})
    (tmp_path / "list.json").write_text(json.dumps(rows))
    data = {"crop": "random", "flip": 0.5, "mask_column": "mask", "resolution": 16}
    options = {"objective": {"masked": True}, "cache": {"variants": 4}}
    config = run_config(tmp_path, tmp_path / "list.json", data=data, **options)
    for batch in islice(batches(config, stores=cached(config)), 6):
        assert batch.loss_mask is not None
        assert batch.latent_mean is not None
        assert batch.loss_mask.shape == (2, 1, 2, 2)
        assert (batch.loss_mask - (batch.latent_mean[:, :1] + 1) / 2).abs().max() < 0.05
    for batch in held_out_batches(config, load_records(config.data), GEOMETRY, cached(config)):
        assert batch.loss_mask is not None
        assert batch.latent_mean is not None
        assert (batch.loss_mask - (batch.latent_mean[:, :1] + 1) / 2).abs().max() < 0.05
    for batch in read(config, 3):
        assert batch.loss_mask is not None
        assert batch.pixels is not None
        red = torch.nn.functional.avg_pool2d(batch.pixels[:, :1], 8)
        assert (batch.loss_mask - (red + 1) / 2).abs().max() < 0.05


def test_what_the_cache_lacks_is_an_error_but_a_broken_picture_is_skipped(square: Path, tmp_path: Path) -> None:
    config = run_config(tmp_path, square)
    with pytest.raises(DataError, match=r"03\.png is not in the cache.*ipadapter cache"):
        list(islice(batches(config, stores=cached(config, missing="03.png")), 8))
    write_folder(tmp_path / "data", 3)
    config = run_config(tmp_path, tmp_path / "data")
    stores = cached(config, missing="01.png")
    break_pictures(tmp_path / "data", "01.png")
    found = list(islice(batches(config, stores=stores), 4))
    assert {skipped.key for batch in found for skipped in batch.skipped} == {"01.png"}


def test_held_out_pictures_come_once_each_without_chance(config: Config) -> None:
    objective = {"drop_text": 0.5, "drop_image": 0.5}
    config = config.model_copy(update={"objective": config.objective.model_copy(update=objective)})
    records = load_records(config.data)
    found = list(held_out_batches(config, records, GEOMETRY))
    assert list(held_out_batches(config, records.subset([]), GEOMETRY)) == []
    assert [batch.keys[0] for batch in found] == [record.key for record in records]
    assert not any(batch.drop_image.any() or batch.captions == ("",) for batch in found)
    for batch, record in zip(found, records, strict=True):
        image = decode(record.image)
        data = config.data.model_copy(update={"crop": "center", "flip": 0.0})
        placement = place_target(image, data, bucket_of(record.image, data), torch.Generator())
        assert torch.equal(batch.pixels[0], target_pixels(image, placement))
