"""Several data sets in one run: each picture as often as its set says."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import ConfigError, read_config, write_config
from ipadapter_trainer.data.loader import World, open_batches
from ipadapter_trainer.data.order import Order, Portion
from ipadapter_trainer.data.records import DataError, Records
from ipadapter_trainer.data.sources import open_source, open_sources
from support.pictures import GEOMETRY, run_config, write_folder, write_shards

SIZES = {"first": 6, "second": 3, "third": 12}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    for name, count in SIZES.items():
        write_folder(folder / name, count, size=(16, 32) if name == "third" else (16, 16))
    return folder


def config_of(folder: Path, run: Path, *more: dict[str, object], **data: object) -> Config:
    sets = [{"path": str(folder / name), **options} for name, options in zip(("second", "third"), more, strict=False)]
    return run_config(run, folder / "first", data={"more": sets, **data})


def times(config: Config, count: int) -> Counter[str]:
    batches = open_batches(config, open_source(config.data), World(), GEOMETRY, 0)
    return Counter(key for batch in islice(batches, count) for key in batch.keys)


def of_set(found: Counter[str], name: str) -> list[int]:
    prefix = "" if name == "first" else f"{name}:"
    return [found[f"{prefix}{number:02}.png"] for number in range(SIZES[name])]


@pytest.mark.parametrize("buckets", [False, True])
def test_a_set_comes_as_often_as_it_repeats(folders: Path, tmp_path: Path, buckets: bool) -> None:
    config = config_of(folders, tmp_path, {"repeats": 4}, {"repeats": 0.5}, buckets=buckets)
    epoch = 6 + 3 * 4 + 12 // 2
    found = times(config, 10 * epoch // 2)
    for name, often in {"first": 10, "second": 40, "third": 5}.items():
        assert all(abs(number - often) <= 1 + buckets for number in of_set(found, name)), name
    assert found.total() == 10 * epoch


@pytest.mark.parametrize("buckets", [False, True])
def test_weights_are_shares_of_the_samples(folders: Path, tmp_path: Path, buckets: bool) -> None:
    config = config_of(folders, tmp_path, {"weight": 1}, {"weight": 1}, weight=2, buckets=buckets)
    found = times(config, 210)
    for name, share in {"first": 0.5, "second": 0.25, "third": 0.25}.items():
        assert sum(of_set(found, name)) / found.total() == pytest.approx(share, rel=0.05)
        assert max(of_set(found, name)) - min(of_set(found, name)) <= 2


def test_processes_and_a_resumed_run_read_what_one_run_reads(folders: Path, tmp_path: Path) -> None:
    config = config_of(folders, tmp_path, {"repeats": 2.5}, {"repeats": 0.3}, buckets=True)
    source = open_source(config.data)

    def keys(world: World, start: int, count: int, batch_size: int) -> list[tuple[str, ...]]:
        train = config.train.model_copy(update={"batch_size": batch_size})
        changed = config.model_copy(update={"train": train})
        return [batch.keys for batch in islice(open_batches(changed, source, world, GEOMETRY, start), count)]

    whole = keys(World(), 0, 30, 4)
    assert keys(World(), 17, 13, 4) == whole[17:]
    halves = zip(keys(World(0, 2), 0, 30, 2), keys(World(1, 2), 0, 30, 2), strict=True)
    assert [first + second for first, second in halves] == whole


def test_sets_that_say_nothing_are_one_set(folders: Path, tmp_path: Path) -> None:
    config = config_of(folders, tmp_path, {}, {})
    found = times(config, 21)
    assert set(found.values()) == {2}
    one = Order(0, {(8, 8): range(9)}, 2)
    several = Order(0, {(8, 8): range(9)}, 2, [Portion(range(4)), Portion(range(4, 9))])
    assert [one.at(position) for position in range(30)] == [several.at(position) for position in range(30)]


def test_keys_groups_and_captions_stay_with_their_sets(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([{"image": "00.png", "say": "listed", "who": "x"}]))
    write_folder(tmp_path, 1)
    more = [
        {"path": str(folders / "third"), "reference": "group"},
        {"path": str(folders / "third"), "caption": "unused"},
        {"path": str(tmp_path / "list.json"), "caption_column": "say"},
    ]
    records = open_source(run_config(tmp_path, folders / "first", data={"more": more}).data)
    assert isinstance(records, Records)
    assert len({record.key for record in records}) == len(records) == 6 + 12 + 12 + 1
    assert [records.key(number) for number in range(31)] == [record.key for record in records]
    assert records[30].caption == "listed"
    by_key = {records.key(number): number for number in range(31)}
    chosen = {records.reference(by_key["third:00.png"], torch.Generator().manual_seed(seed)).name for seed in range(60)}
    assert chosen == {str(folders / "third" / f"{number:02}.png") for number in range(1, 12)}
    for key in ("00.png", "list.json:00.png", "third#2:00.png"):
        record = records[by_key[key]]
        assert records.reference(by_key[key], torch.Generator()).name == record.image.name


def test_groups_of_one_name_in_two_sets_are_two(folders: Path, tmp_path: Path) -> None:
    groups = {"reference": "group"}
    records = open_source(config_of(folders, tmp_path, groups, groups, **groups).data)
    assert isinstance(records, Records)
    for number in range(len(records)):
        for seed in range(10):
            reference = records.reference(number, torch.Generator().manual_seed(seed))
            assert Path(reference.name).parent == Path(records[number].image.name).parent


def test_validation_pictures_are_kept_out_of_all_sets_and_its_own_path_is_alone(folders: Path, tmp_path: Path) -> None:
    config = config_of(folders, tmp_path, {"repeats": 3}, {})
    validation = config.validation.model_copy(update={"every": 1, "images": 7})
    source, held = open_sources(config.model_copy(update={"validation": validation}))
    assert isinstance(source, Records)
    assert (len(source), len(held)) == (14, 7)
    held_keys = {record.key for record in held}
    batches = open_batches(config, source, World(), GEOMETRY, 0)
    found = Counter(key for batch in islice(batches, 50) for key in batch.keys)
    assert not held_keys & found.keys()
    often = [number for key, number in found.items() if key.startswith("second:")]
    seldom = [number for key, number in found.items() if not key.startswith("second:")]
    assert not often or min(often) > 2 * max(seldom)
    path = config.validation.model_copy(update={"every": 1, "path": str(folders / "first")})
    source, held = open_sources(config.model_copy(update={"validation": path}))
    assert (len(source), len(held)) == (21, 6)


@pytest.mark.parametrize(
    ("more", "data", "message"),
    [
        ([{"weight": 1}], {}, "weight.* every data set or to none"),
        ([{"weight": 1, "repeats": 2}], {"weight": 1}, "weight or .*repeats"),
        ([{"reference": "column"}], {}, "reference_column"),
        ([{"mask_column": "mask"}], {}, "objective.masked"),
        ([{"repeats": 0}], {}, "repeats is 0"),
        ([{"pathh": "x"}], {}, "unknown key data.more.pathh.*write data.more.path"),
    ],
)
def test_sets_that_contradict_are_said(tmp_path: Path, more: list[object], data: dict, message: str) -> None:
    text = '[base]\nmodel="b"\n[encoder]\nmodel="e"\n[train]\noutput="o"\nsteps=1\n[data]\npath="p"\n'
    text += "".join(f"{name} = {value}\n" for name, value in data.items())
    for one in more:
        text += '[[data.more]]\npath="q"\n' + "".join(f"{name} = {json.dumps(value)}\n" for name, value in one.items())
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "c.toml")


def test_a_config_with_sets_is_written_and_read_back(folders: Path, tmp_path: Path) -> None:
    config = config_of(folders, tmp_path, {"repeats": 4}, {"caption": "a 'b'"})
    write_config(config, tmp_path / "out.toml")
    assert read_config(tmp_path / "out.toml") == config
    assert read_config(tmp_path / "out.toml", ["data.more=[]"]).data.more == ()


def test_streams_cannot_be_mixed(folders: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "second", 1, 2)
    config = run_config(tmp_path, folders / "first", data={"more": [{"path": str(tmp_path / "second")}]})
    with pytest.raises(DataError, match=r"second.* is streamed.*unpack"):
        open_source(config.data)
