"""Every kind of data set gives the same records, and every mistake in one is said with its place."""

import json
import pickle
import re
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset, DatasetDict, Image

from ipadapter_trainer.config import DataConfig
from ipadapter_trainer.data.pictures import decode, picture_digest
from ipadapter_trainer.data.records import DataError, Record, Records, split_validation
from ipadapter_trainer.data.shards import Shards
from ipadapter_trainer.data.sources import load_records, open_source, open_sources
from support.pictures import encoded, gradient, run_config, write_folder, write_shard, write_shards

COUNT = 3
CAPTIONS = [f"picture {number}" for number in range(COUNT)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_folder(folder, COUNT)
    return folder


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


def rows_of(pictures: Path, **more: object) -> list[dict[str, object]]:
    return [{"image_file": f"{number:02}.png", "text": f"picture {number}", **more} for number in range(COUNT)]


def write_json(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows))
    return path


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    lines = [",".join(rows[0])] + [",".join(str(value) for value in row.values()) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    return path


def hub_dataset(pictures: Path) -> Dataset:
    paths = [str(pictures / f"{number:02}.png") for number in range(COUNT)]
    table = Dataset.from_dict({"image": paths, "text": CAPTIONS, "set": ["a", "a", "b"], "other": paths[::-1]})
    return table.cast_column("image", Image())


def source(kind: str, pictures: Path, folder: Path) -> tuple[str, dict[str, str]]:
    """A data set of a kind: its path, and what the config needs besides."""
    rows, root = rows_of(pictures), {"image_root": str(pictures)}
    if kind == "folder":
        return str(pictures), {}
    if kind == "json":
        return str(write_json(folder / "list.json", rows)), root
    if kind == "jsonl":
        return str(write_jsonl(folder / "list.jsonl", rows)), root
    if kind == "csv":
        return str(write_csv(folder / "list.csv", rows)), root
    if kind == "json-under-another-name":
        return str(write_json(folder / "list.data", rows)), {"format": "json", **root}
    if kind == "imagefolder":
        write_folder(folder / "hf", COUNT, captions=False)
        write_csv(folder / "hf" / "metadata.csv", [{"file_name": r["image_file"], "text": r["text"]} for r in rows])
        return str(folder / "hf"), {}
    table = hub_dataset(pictures)
    if kind == "saved":
        table.save_to_disk(str(folder / "saved"))
        return str(folder / "saved"), {}
    if kind == "saved-splits":
        DatasetDict(train=table, test=table.select([0])).save_to_disk(str(folder / "splits"))
        return str(folder / "splits"), {}
    (folder / "hub").mkdir()
    outside = {"allow_outside": True}  # it names the pictures where they are
    table.to_parquet(folder / "hub" / "train.parquet")
    return str(folder / "hub") if kind == "parquet-folder" else str(folder / "hub" / "train.parquet"), outside


def records_of(path: str | Path, **options: object) -> Records:
    return load_records(DataConfig(path=str(path), **options))


def blue(record: Record) -> int:
    return decode(record.image).getpixel((0, 0))[2] // 10


@pytest.mark.parametrize(
    "kind",
    ["folder", "json", "jsonl", "csv", "json-under-another-name", "imagefolder", "saved", "saved-splits",
     "parquet-folder", "parquet"],
)  # fmt: skip
def test_every_format_is_recognised_and_gives_the_same_samples(kind: str, pictures: Path, tmp_path: Path) -> None:
    path, options = source(kind, pictures, tmp_path)
    records = records_of(path, **options)
    assert [record.caption for record in records] == CAPTIONS
    assert [blue(record) for record in records] == list(range(COUNT))
    assert len({record.key for record in records}) == COUNT
    assert [records.key(index) for index in range(COUNT)] == [record.key for record in records]
    assert all(record.reference.name == record.image.name and record.mask is None for record in records)
    sent_to_a_worker = pickle.loads(pickle.dumps(records))
    assert [blue(record) for record in sent_to_a_worker] == list(range(COUNT))


def test_shards_are_recognised_and_their_captions_found(tmp_path: Path) -> None:
    picture = encoded(gradient(8, 8))
    samples = {
        "a": {"png": picture, "txt": b"from txt"},
        "b": {"jpg": picture, "json": b'{"caption": "from json"}'},
        "c": {"webp": picture, "caption": b"from caption"},
    }
    write_shard(tmp_path / "00.tar", samples)
    for path in (tmp_path, tmp_path / "00.tar", tmp_path / "0{0..0}.tar", tmp_path / "*.tar"):
        shards = open_source(DataConfig(path=str(path)))
        assert isinstance(shards, Shards)
        assert [item.caption for item in shards.read()] == ["from txt", "from json", "from caption"]
    assert [item.key for item in shards.read()] == ["00.tar/a", "00.tar/b", "00.tar/c"]


def test_sub_folders_are_read_and_name_the_group(tmp_path: Path) -> None:
    write_folder(tmp_path / "cats", 1)
    write_folder(tmp_path / "dogs" / "old", 1)
    write_folder(tmp_path, 1)
    assert [(record.key, record.group) for record in records_of(tmp_path)] == [
        ("00.png", ""), ("cats/00.png", "cats"), ("dogs/old/00.png", "dogs/old"),
    ]  # fmt: skip


def test_a_default_caption_stands_in_where_there_is_none(tmp_path: Path) -> None:
    write_folder(tmp_path, 2, captions=False)
    (tmp_path / "00.caption").write_text("my own")
    assert [record.caption for record in records_of(tmp_path, caption="a photo")] == ["my own", "a photo"]


def test_a_picture_listed_twice_has_two_keys(pictures: Path) -> None:
    rows = [{"image_file": "00.png", "text": "one"}, {"image_file": "00.png", "text": "two"}]
    path = write_json(pictures / "twice.json", rows)
    assert [record.key for record in records_of(path)] == ["00.png", "00.png#2"]


def test_references_come_from_a_column(pictures: Path, tmp_path: Path) -> None:
    rows = [{**row, "prompt_image": "02.png"} for row in rows_of(pictures)]
    path = write_json(tmp_path / "list.json", rows)
    options = {"reference": "column", "reference_column": "prompt_image", "image_root": str(pictures)}
    assert all(Path(record.reference.name).name == "02.png" for record in records_of(path, **options))
    hub_dataset(pictures).save_to_disk(str(tmp_path / "saved"))
    records = records_of(tmp_path / "saved", reference="column", reference_column="other", allow_outside=True)
    assert picture_digest(records[0].reference.read()) == picture_digest((pictures / "02.png").read_bytes())


def test_references_have_the_same_name_in_another_folder_whatever_their_suffix(pictures: Path, tmp_path: Path) -> None:
    gradient(8, 8).save(tmp_path / "01.jpg")
    records = records_of(pictures, reference="folder", reference_folder=str(tmp_path))
    assert records[1].reference.name == str(tmp_path / "01.jpg")
    assert records[0].reference.name == str(tmp_path / "00.png"), "missing, which is found out when it is read"


def test_references_of_a_group_are_another_member_or_itself_if_alone(pictures: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "two", 3)
    write_folder(tmp_path / "alone", 1)
    hub_dataset(pictures).save_to_disk(str(tmp_path / "saved"))
    folder = records_of(tmp_path, format="folder", reference="group")
    saved = records_of(tmp_path / "saved", reference="group", group_column="set")
    for records in (folder, saved):
        names = {record.image.name: record for record in records}
        for index, record in enumerate(records):
            generators = (torch.Generator().manual_seed(seed) for seed in range(20))
            chosen = {records.reference(index, generator).name for generator in generators}
            same = {name for name, other in names.items() if other.group == record.group}
            assert chosen == (same - {record.image.name} or same)


def test_references_in_a_shard_are_a_member(tmp_path: Path) -> None:
    samples = {"a": {"png": encoded(gradient(8, 8, 1)), "ref.png": encoded(gradient(8, 8, 2)), "txt": b"x"}}
    write_shard(tmp_path / "00.tar", samples)
    shards = open_source(DataConfig(path=str(tmp_path), reference="column", reference_column="ref.png"))
    (record,) = shards.read()
    assert (blue(record), decode(record.reference).getpixel((0, 0))[2]) == (1, 20)


def test_masks_come_from_a_column(pictures: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "list.jsonl", rows_of(pictures, mask="00.png"))
    records = records_of(path, mask_column="mask", image_root=str(pictures))
    assert records[2].mask.name == str(pictures / "00.png")


def test_validation_pictures_are_kept_out_and_stay_the_same_when_data_is_added(tmp_path: Path) -> None:
    write_folder(tmp_path, 12)
    train, held = split_validation(records_of(tmp_path), 4, seed=0)
    keys, held_keys = {record.key for record in train}, {record.key for record in held}
    assert len(keys) == 8
    assert len(held_keys) == 4
    assert not keys & held_keys
    write_folder(tmp_path / "0", 3)  # before all others
    _, again = split_validation(records_of(tmp_path), 4, seed=0)
    assert len(held_keys & {record.key for record in again}) >= 2
    with pytest.raises(DataError, match="15 pictures, of which 15 are to be kept out"):
        split_validation(records_of(tmp_path), 15, seed=0)


def test_kept_out_pictures_are_no_references_in_training(tmp_path: Path) -> None:
    write_folder(tmp_path, 8)
    train, held = split_validation(records_of(tmp_path, reference="group"), 4, seed=0)
    kept_out = {record.image.name for record in held}
    for seed in range(20):
        assert train.reference(seed % 4, torch.Generator().manual_seed(seed)).name not in kept_out
    _, one = split_validation(records_of(tmp_path, reference="group"), 1, seed=0)
    assert one.reference(0, torch.Generator()).name != one[0].image.name, "but have training pictures as references"


def test_a_stream_keeps_its_first_samples_out(tmp_path: Path) -> None:
    captions = write_shards(tmp_path / "shards", 2, 3)
    config = run_config(tmp_path, tmp_path / "shards", validation={"every": 1, "images": 4})
    shards, held = open_sources(config)
    assert [record.caption for record in held] == captions[:4]
    assert [record.caption for record in shards.read()] == captions[4:]


def test_shards_of_one_name_in_two_folders_keep_their_samples_apart(tmp_path: Path) -> None:
    """Else those kept out of the one would be lost of the other, too."""
    write_shards(tmp_path / "a", 1, 3)
    write_shards(tmp_path / "b", 1, 3)
    config = run_config(tmp_path, f"{tmp_path}/{{a,b}}/00.tar", validation={"every": 1, "images": 2})
    shards, held = open_sources(config)
    keys = [record.key for record in held] + [record.key for record in shards.read()]
    assert keys == [f"{folder}/00.tar/000{number}" for folder in "ab" for number in range(3)]


def test_a_data_set_of_its_own_for_validation_leaves_training_whole(pictures: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "held", 5)
    validation = {"every": 1, "images": 4, "path": str(tmp_path / "held")}
    train, held = open_sources(run_config(tmp_path, pictures, validation=validation))
    assert (len(train), len(held)) == (COUNT, 4)
    train, held = open_sources(run_config(tmp_path, pictures))
    assert (len(train), len(held)) == (COUNT, 0), "no validation, nothing kept out"


def mistakes(pictures: Path, folder: Path) -> dict[str, tuple[dict[str, object], str]]:
    """A bad config or file by name, and what its message says."""
    rows = rows_of(pictures)
    good = {"path": str(write_json(folder / "good.json", rows))}
    hub_dataset(pictures).save_to_disk(str(folder / "saved"))
    hub_dataset(pictures).select([]).save_to_disk(str(folder / "none"))
    DatasetDict(train=hub_dataset(pictures)).save_to_disk(str(folder / "splits"))
    write_shard(folder / "00.tar", {"a": {"png": encoded(gradient(8, 8)), "txt": b"x"}})
    (folder / "bare").mkdir()
    write_folder(folder / "bare", 1, captions=False)
    (folder / "empty").mkdir()
    no_text = [{**rows[0]}, {"image_file": "01.png"}]
    no_image = [{**rows[0]}, {"text": "lost"}]
    (folder / "broken.jsonl").write_text('{"image_file": "a.png", "text": "x"}\n{"image_file": \n')
    (folder / "latin.csv").write_bytes("file_name,text\na.png,caf\xe9\n".encode("latin-1"))
    return {
        "missing": ({"path": f"{folder}/godo.json"}, r"does not exist.*perhaps good\.json"),
        "no pictures": ({"path": f"{folder}/empty"}, r"no pictures in .*empty"),
        "no caption beside": ({"path": f"{folder}/bare"}, r"00\.png has no caption.*00\.txt.*data\.caption"),
        "no caption": ({"path": str(write_json(folder / "a.json", no_text))}, r"row 2 of .*a\.json has no caption"),
        "no picture": ({"path": str(write_json(folder / "b.json", no_image))}, r"row 2 of .*b\.json has no image_file"),
        "column": ({**good, "image_column": "image_fiel"}, r"good\.json.*image_file, text.*perhaps image_file"),
        "no image column": (
            {"path": str(write_json(folder / "c.json", [{"url": "x", "text": "y"}]))},
            r"no column of .*c\.json \(url, text\) looks like a picture.*data\.image_column",
        ),
        "no caption column": (
            {"path": str(write_json(folder / "d.json", [{"image": "x", "words": "y"}]))},
            r"looks like a caption.*data\.caption_column",
        ),
        "no list": ({"path": str(write_json(folder / "e.json", {"image": "x"}))}, "not a JSON list"),
        "no rows": ({"path": str(write_json(folder / "f.json", []))}, "has no rows"),
        "broken line": ({"path": f"{folder}/broken.jsonl"}, r"broken\.jsonl is not JSON lines \(line 2"),
        "encoding": ({"path": f"{folder}/latin.csv"}, r"latin\.csv is not UTF-8"),
        "kind": ({"path": f"{pictures}/00.txt"}, "no known kind"),
        "group": ({**good, "reference": "group"}, r"data\.group_column"),
        "reference folder": ({**good, "reference": "folder", "reference_folder": "none"}, "which is no folder"),
        "column of a folder": ({"path": str(pictures), "mask_column": "mask"}, r"metadata\.csv"),
        "split": ({"path": f"{folder}/splits", "split": "trian"}, r"its splits \(train\).*perhaps train"),
        "hub rows": ({"path": f"{folder}/none"}, r"none .*cannot be opened"),
        "hub column": ({"path": f"{folder}/saved", "caption_column": "words"}, r"image, text, set, other"),
        "hub name": ({"path": "someone/something"}, r"someone/something .*cannot be opened"),
        "shards": ({"path": f"{folder}/0{{0..2}}.tar"}, r"01\.tar does not exist, of 3 shards"),
        "pattern": ({"path": f"{folder}/x*.tar"}, "no shards match"),
        "member": (
            {"path": f"{folder}/00.tar", "reference": "column", "reference_column": "ref.jpg"},
            r"reference_column = \"ref\.jpg\".*png, txt",
        ),
        "stream group": ({"path": f"{folder}/00.tar", "reference": "group"}, "stream"),
    }  # fmt: skip


def test_every_mistake_is_said_with_its_place(pictures: Path, tmp_path: Path) -> None:
    found = {}
    for name, (options, message) in mistakes(pictures, tmp_path).items():
        with pytest.raises(DataError) as caught:
            open_source(DataConfig(**options))
        found[name] = str(caught.value), message
    wrong = {name: text for name, (text, message) in found.items() if not re.search(message, text)}
    assert not wrong


def test_a_shard_sample_without_a_caption_is_said(tmp_path: Path) -> None:
    write_shard(tmp_path / "00.tar", {"a": {"png": encoded(gradient(8, 8))}})
    with pytest.raises(DataError, match=r"00\.tar/a.* has no caption"):
        list(open_source(DataConfig(path=str(tmp_path))).read())


def test_a_single_group_is_validated_with_each_picture_as_its_own_reference(tmp_path: Path) -> None:
    """Any other member says as much of a picture as a wrong reference would: the gap would be 0 by construction."""
    for folder in ("one/only", "two/cats", "two/dogs"):
        write_folder(tmp_path / folder, 8)
    for folder, is_itself in (("one", True), ("two", False)):
        asked = {"data": {"reference": "group"}, "validation": {"every": 1, "images": 4}}
        train, held_out = open_sources(run_config(tmp_path, tmp_path / folder, **asked))
        for records, own in ((held_out, is_itself), (train, False)):
            drawn = [records.reference(index, torch.Generator().manual_seed(1)) for index in range(4)]
            assert [picture == records[index].image for index, picture in enumerate(drawn)] == [own] * 4


def test_pictures_of_a_dataset_without_a_group_are_no_group(tmp_path: Path) -> None:
    paths = [str(path) for path in write_folder(tmp_path, 3)]
    table = {"image": paths, "text": ["a", "b", "c"], "who": ["x", None, None]}
    datasets.Dataset.from_dict(table).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"row 1 of .*saved has no who.*complete the row"):
        records_of(tmp_path / "saved", reference="group", group_column="who")
