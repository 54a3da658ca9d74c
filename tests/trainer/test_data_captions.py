"""Pictures with several captions: one is drawn for each sample, and all are cached."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset

from ipadapter_trainer.cache.fill import fill, open_stores
from ipadapter_trainer.config import Config, DataConfig
from ipadapter_trainer.data.loader import World, held_out_batches, open_batches
from ipadapter_trainer.data.records import DataError, Record
from ipadapter_trainer.data.sources import load_records, open_source
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.readers.opening import open_reader
from support.pictures import GEOMETRY, encoded, gradient, run_config, write_folder, write_shard

TEXTS = ["a cat", "a ginger cat", "an animal"]
NOTHING_DROPPED = {"drop_text": 0.0, "drop_image": 0.0, "drop_both": 0.0}


def in_json(folder: Path, texts: object) -> str:
    (folder / "list.json").write_text(json.dumps([{"image": "00.png", "text": texts}]))
    return str(folder / "list.json")


def in_lines(folder: Path, texts: object) -> str:
    (folder / "list.jsonl").write_text(json.dumps({"image": "00.png", "text": texts}))
    return str(folder / "list.jsonl")


def in_hub(folder: Path, texts: object) -> str:
    Dataset.from_dict({"image": [str(folder / "00.png")], "text": [texts]}).save_to_disk(str(folder / "saved"))
    return str(folder / "saved")


def in_shard(folder: Path, texts: object) -> str:
    write_shard(folder / "0.tar", {"a": {"png": encoded(gradient(8, 8)), "json": json.dumps({"text": texts}).encode()}})
    return str(folder / "0.tar")


KINDS = [in_json, in_lines, in_hub, in_shard]


def only_record(path: str, **options: object) -> Record:
    source = open_source(DataConfig(path=path, **options))
    (record,) = source if hasattr(source, "__len__") else source.read()
    assert isinstance(record, Record)
    return record


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    write_folder(tmp_path, 1)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_takes_a_list_of_captions(folder: Path, kind: Callable[[Path, object], str]) -> None:
    record = only_record(kind(folder, TEXTS), caption="unused")
    assert record.captions == tuple(TEXTS)
    assert record.caption == "a cat"
    one = only_record(kind(folder, ["a cat"]) if kind is not in_hub else kind(folder, "a cat"))
    assert one.captions == ("a cat",)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_place_in_a_list_loses_no_caption(folder: Path, kind: Callable[[Path, object], str]) -> None:
    assert only_record(kind(folder, ["a cat", None]), caption="unused").captions == ("a cat",)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("texts", [[], [None], [1, 2]])
def test_a_list_without_captions_is_none(folder: Path, kind: Callable[[Path, object], str], texts: list[int]) -> None:
    path = kind(folder, texts)
    with pytest.raises(DataError, match="has no caption"):
        only_record(path)
    assert only_record(path, caption="a photo").captions == ("a photo",)


def config_of(folder: Path, texts: object, **sections: dict[str, object]) -> Config:
    return run_config(folder, in_json(folder, texts), objective=NOTHING_DROPPED, **sections)


def drawn(config: Config, count: int, start: int = 0) -> list[str]:
    batches = open_batches(config, load_records(config.data), World(), GEOMETRY, start)
    return [caption for batch in islice(batches, count) for caption in batch.captions]


def test_each_sample_draws_one_and_a_resumed_run_the_same(folder: Path) -> None:
    config = config_of(folder, TEXTS)
    captions = drawn(config, 60)
    assert Counter(captions).keys() == set(TEXTS)
    assert min(Counter(captions).values()) > 25
    assert drawn(config, 3, start=57) == captions[-6:]


def test_several_captions_change_nothing_else(folder: Path) -> None:
    one, several = (
        list(islice(open_batches(config, load_records(config.data), World(), GEOMETRY, 0), 5))
        for config in (config_of(folder, TEXTS[0]), config_of(folder, TEXTS))
    )
    for first, second in zip(one, several, strict=True):
        assert torch.equal(first.noise, second.noise)
        assert torch.equal(first.times, second.times)
        assert torch.equal(first.pixels, second.pixels)


def test_a_validation_reads_the_first(folder: Path) -> None:
    config = config_of(folder, TEXTS[::-1])
    assert [batch.captions for batch in held_out_batches(config, load_records(config.data), GEOMETRY)] == [
        ("an animal",)
    ]


def test_all_of_them_are_cached_and_asked_for(folder: Path, base_folder, encoder_folder) -> None:
    cache = {"path": str(folder / "cache"), "precision": "fp32"}
    models = {
        "base": {"model": str(base_folder()), "precision": "fp32"},
        "encoder": {"model": str(encoder_folder()), "precision": "fp32"},
    }
    one = config_of(folder, TEXTS[:1], cache=cache, **models)
    cpu = torch.device("cpu")
    base, reader = load_base(one.base, cpu), open_reader(one, cpu)
    fill(one, base, reader, [open_source(one.data)], batch_size=2)
    several = config_of(folder, TEXTS, cache=cache, **models)
    with pytest.raises(ValueError, match="1 of 1 pictures are not in the cache"):
        open_stores(several, base, reader).require(load_records(several.data))
    fill(several, base, reader, [open_source(several.data)], batch_size=2)
    stores = open_stores(several, base, reader)
    stores.require(load_records(several.data))
    batches = islice(open_batches(several, load_records(several.data), World(), GEOMETRY, 0, stores), 20)
    assert {caption for batch in batches for caption in batch.captions} == set(TEXTS)
