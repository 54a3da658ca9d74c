"""What the training loop reads: the same samples however it is split up, stopped or disturbed by broken pictures."""

import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ipadapter_trainer.batch import Batch
from ipadapter_trainer.config import AugmentConfig, Config, DataConfig
from ipadapter_trainer.data.buckets import Centered
from ipadapter_trainer.data.loader import World, held_out_batches, open_batches
from ipadapter_trainer.data.order import Order
from ipadapter_trainer.data.pictures import decode
from ipadapter_trainer.data.prepare import (
    bucket_of,
    caption_digest,
    entry_key,
    place_target,
    reference_pixels,
    target_pixels,
    variant_generator,
)
from ipadapter_trainer.data.records import DataError
from ipadapter_trainer.data.sample import Stores
from ipadapter_trainer.data.scan import scan_buckets
from ipadapter_trainer.data.sources import load_records
from support.pictures import GEOMETRY, REFERENCE_FORMAT, gradient, run_config, write_folder
from support.reading import scan_together

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
            parts[position] = {name: row(value, index) for name, value in values.items() if value is not None}
    return parts


def row(value: Any, index: int) -> Any:
    """Of a sequence or tensor; of named tensors the rows under their names."""
    return {name: each[index] for name, each in value.items()} if isinstance(value, Mapping) else value[index]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def assert_same(one: dict[int, dict[str, Any]], other: dict[int, dict[str, Any]]) -> None:
    assert one.keys() == other.keys()
    for position, parts in one.items():
        assert parts.keys() == other[position].keys()
        for name, value in parts.items():
            assert equal(value, other[position][name]), f"{name} of sample {position}"


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
        assert batch.sizes[:, 4:].tolist() == [list(batch.pixels.shape[2:])] * 2
        assert batch.noise.shape == (2, 4, batch.pixels.shape[2] // 8, batch.pixels.shape[3] // 8)
        assert batch.references is not None
        assert batch.references["pixels"].shape == (2, 3, 8, 8)


MEMBERS = {(8, 8): range(200), (8, 16): range(200, 237), (16, 8): range(237, 242), (8, 24): range(242, 243)}


@pytest.mark.parametrize("global_batch", [1, 4, 16])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_picture_comes_equally_often_whatever_the_size_of_its_bucket(global_batch: int, seed: int) -> None:
    order = Order(seed, MEMBERS, global_batch)
    rounds = 12 * global_batch  # of 243 pictures, so that the bucket of one alone has come 12 times
    found = [order.at(position) for position in range(rounds * 243 // global_batch * global_batch)]
    times = Counter(number for number, _ in found)
    assert times.keys() == set(range(243))
    for bucket, numbers in MEMBERS.items():
        share = sum(times[number] for number in numbers) / len(found)
        assert share == pytest.approx(len(numbers) / 243, rel=0.1)
        assert max(times[number] for number in numbers) - min(times[number] for number in numbers) <= 1
        assert all(number in numbers for number, place in found if place == bucket)
    for first in range(0, len(found), global_batch):
        assert len({bucket for _, bucket in found[first : first + global_batch]}) == 1
    sizes = [bucket for _, bucket in found[::global_batch]]
    assert sizes[: len(sizes) // 2] != sizes[len(sizes) // 2 :][: len(sizes) // 2], "sizes come in random order"


def test_a_short_run_favours_no_size() -> None:
    """Of many runs, in which the batch of the small bucket comes is chance."""
    firsts = Counter(Order(seed, {(8, 8): range(12), (8, 16): [12, 13]}, 4).at(0)[1] for seed in range(300))
    assert firsts[8, 16] / 300 == pytest.approx(2 / 14, abs=0.06)


def test_one_bucket_is_a_permutation_in_every_epoch() -> None:
    order = Order(0, {(8, 8): range(7)}, 4)
    epochs = [[order.at(position)[0] for position in range(7 * epoch, 7 * epoch + 7)] for epoch in range(9)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5
    assert epochs[:2] == [[1, 0, 2, 3, 5, 6, 4], [3, 4, 6, 0, 1, 5, 2]], "as in runs that were started before"


def test_a_position_is_the_same_from_wherever_it_is_asked() -> None:
    whole = Order(3, MEMBERS, 8)
    found = [whole.at(position) for position in range(4000)]
    assert [Order(3, MEMBERS, 8).at(position) for position in (3999, 1234, 0)] == [found[3999], found[1234], found[0]]


def test_processes_share_the_reading_of_picture_sizes(mixed: Path, tmp_path: Path) -> None:
    shutil.copytree(mixed, tmp_path / "data")
    break_pictures(tmp_path / "data", "1/02.png")
    (tmp_path / "data" / "0" / "01.png").write_bytes(b"")
    data = DataConfig(path=str(tmp_path / "data"), resolution=32, bucket_step=8, buckets=True)
    records = load_records(data)
    alone = scan_buckets(records, data, data.resolutions, show=False, processes=3)
    forked = multiprocessing.get_context("fork")  # as the data workers are: nothing is imported again
    pipes = [forked.Pipe(duplex=False) for _ in range(3)]
    readers = [
        forked.Process(target=scan_together, args=(tmp_path, rank, 3, pipe[1])) for rank, pipe in enumerate(pipes)
    ]
    for reader in readers:
        reader.start()
    found = [pipe[0].recv() for pipe in pipes if pipe[0].poll(60)]
    for reader in readers:
        reader.join(60)
    assert [(members, skipped) for members, skipped, _ in found] == [alone] * 3
    looked_at = [key for *_, keys in found for key in keys]
    assert sorted(looked_at) == sorted(record.key for record in records), "each by one process"


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
        for name in ("keys", "captions", "noise", "latent_noise", "times", "drop_image"):
            same = sample[name] == raw[position][name]
            assert same.all() if isinstance(same, Tensor) else same
        assert sample["latent_mean"].shape == sample["noise"].shape
        assert sample.keys() >= {"latent_std", "features", "text", "sizes"}
        assert not sample.keys() & {"pixels", "references", "pooled"}
        assert (sample["captions"] == "") <= bool((sample["text"]["text"] == 0).all())
    assert {int(sample["features"]["features"][1]) for sample in found.values()} == {0, 1, 2}


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


def test_held_out_pictures_come_once_each_without_chance(square: Path, tmp_path: Path) -> None:
    options = {"objective": {"drop_text": 0.5, "drop_image": 0.5, "drop_both": 0.0}, "cache": {"variants": 5}}
    config = run_config(tmp_path, square, data={**RANDOM, "resolution": 16}, **options)
    records = load_records(config.data)
    found = list(held_out_batches(config, records, GEOMETRY))
    assert list(held_out_batches(config, records.subset([]), GEOMETRY)) == []
    assert [batch.keys[0] for batch in found] == [record.key for record in records]
    assert not any(batch.drop_image.any() or batch.captions == ("",) for batch in found)
    for batch, record in zip(found, records, strict=True):
        image = decode(record.image)
        placement = place_target(image, Centered(), bucket_of(record.image, config.data), torch.Generator())
        assert (placement.top, placement.left, placement.flip) == (0, 1, False)
        assert torch.equal(batch.pixels[0], target_pixels(image, placement))
        whole = reference_pixels(image, AugmentConfig(), REFERENCE_FORMAT, torch.Generator())
        assert torch.equal(batch.references["pixels"][0], whole)
