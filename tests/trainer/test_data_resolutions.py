"""Several resolutions in one run: each picture at each of them, a batch at one."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from ipadapter_trainer.batch import Batch
from ipadapter_trainer.cache.estimate import estimate_bytes
from ipadapter_trainer.cache.fill import fill, open_stores
from ipadapter_trainer.config import Config
from ipadapter_trainer.data.loader import World, held_out_batches, open_batches
from ipadapter_trainer.data.sources import load_records, open_source
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.readers.opening import open_reader
from support.pictures import GEOMETRY, gradient, run_config, write_folder, write_shards

SQUARES = {(16, 16), (24, 24), (40, 40)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resolutions")
    write_folder(folder, 5, size=(48, 48))
    gradient(32, 64).save(folder / "wide.png")
    (folder / "wide.txt").write_text("wide")
    return folder


def config_of(path: Path, run: Path, **sections: dict[str, object]) -> Config:
    data = {"resolution": 16, "more_resolutions": [24, 40], "crop": "random", **sections.pop("data", {})}
    return run_config(run, path, data=data, **sections)


def read(config: Config, count: int, world: World = World(), start: int = 0) -> list[Batch]:  # noqa: B008 - frozen
    return list(islice(open_batches(config, open_source(config.data), world, GEOMETRY, start), count))


def size_of(batch: Batch) -> tuple[int, int]:
    assert batch.pixels is not None
    height, width = batch.pixels.shape[2:]
    return height, width


@pytest.mark.parametrize("buckets", [False, True])
def test_each_picture_comes_equally_often_at_each_size(folder: Path, tmp_path: Path, buckets: bool) -> None:
    found = read(config_of(folder, tmp_path, data={"buckets": buckets}), 18 * 10 // 2)
    times = Counter((key, size_of(batch)[0] * size_of(batch)[1] // 200) for batch in found for key in batch.keys)
    assert len(times) == 6 * 3
    assert max(times.values()) - min(times.values()) <= 2
    assert {size_of(batch) for batch in found if "wide.png" not in batch.keys} == SQUARES
    wide = {size_of(batch) for batch in found if "wide.png" in batch.keys}
    assert (wide == SQUARES) is not buckets
    assert len(wide) == 3


def test_it_is_the_same_however_it_is_split_up_or_stopped(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, tmp_path, data={"buckets": True})
    train = config.train.model_copy(update={"batch_size": 4})
    whole = read(config.model_copy(update={"train": train}), 12)
    halves = zip(read(config, 12, World(0, 2)), read(config, 12, World(1, 2)), strict=True)
    assert [one.keys + other.keys for one, other in halves] == [batch.keys for batch in whole]
    assert [batch.keys for batch in read(config, 5, start=20)] == [batch.keys for batch in read(config, 25)[20:]]


def test_validation_is_at_the_first(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, tmp_path)
    sizes = [size_of(batch) for batch in held_out_batches(config, load_records(config.data), GEOMETRY)]
    assert sizes == [(16, 16)] * 6


@pytest.mark.parametrize("buckets", [False, True])
def test_streams_have_them_too(tmp_path: Path, buckets: bool) -> None:
    write_shards(tmp_path / "shards", 2, 5)
    data = {"shuffle_buffer": 8, "buckets": buckets}
    config = config_of(tmp_path / "shards", tmp_path, data=data)
    found = read(config, 10 * 3 * 10 // 2)
    times = Counter((key, size_of(batch)) for batch in found for key in batch.keys)
    assert {size for _, size in times} == SQUARES
    by_size = Counter(size_of(batch) for batch in found)
    assert max(by_size.values()) - min(by_size.values()) <= 2
    assert len(times) == 30
    assert [batch.keys for batch in read(config, 3, start=70)] == [batch.keys for batch in found[70:73]]


@pytest.mark.parametrize("buckets", [False, True])
def test_a_cache_holds_each_size(folder: Path, tmp_path: Path, base_folder, encoder_folder, buckets: bool) -> None:
    models = {
        "base": {"model": str(base_folder()), "precision": "fp32"},
        "encoder": {"model": str(encoder_folder()), "precision": "fp32"},
        "cache": {"path": str(tmp_path / "cache"), "precision": "fp32"},
    }
    config = config_of(folder, tmp_path, data={"buckets": buckets, "crop": "center"}, **models)
    cpu = torch.device("cpu")
    base, reader = load_base(config.base, cpu), open_reader(config, cpu)
    records = load_records(config.data)
    one = config.model_copy(update={"data": config.data.model_copy(update={"more_resolutions": ()})})
    before = fill(one, base, reader, [records], batch_size=2)
    with pytest.raises(ValueError, match="6 of 6 pictures are not in the cache"):
        open_stores(config, base, reader).require(records)
    report = fill(config, base, reader, [records], batch_size=2)
    expected = estimate_bytes(config, base, reader, pictures=6, references=6, captions=6)
    assert report.nbytes["latents"] - before.nbytes["latents"] == pytest.approx(expected["latents"], rel=0.15)
    stores = open_stores(config, base, reader)
    stores.require(records)
    open_stores(one, base, reader).require(records)
    plain = read(config, 12)
    for batch, raw in zip(open_batches(config, records, World(), GEOMETRY, 0, stores), plain, strict=False):
        assert batch.keys == raw.keys
        assert raw.pixels is not None
        assert batch.latent_mean is not None
        mean, _ = base.encode_pixels(raw.pixels)
        assert torch.allclose(batch.latent_mean, mean, atol=1e-5)
    (first, *_) = held_out_batches(config, records, GEOMETRY, stores)
    assert first.sizes[0, 4:].tolist() == [16, 16]


def test_a_size_named_twice_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="named twice"):
        run_config(tmp_path, tmp_path, data={"resolution": 16, "more_resolutions": [24, 16]})
