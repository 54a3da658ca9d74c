"""A folder is exactly the user's pictures, and what is left out of it is said."""

import logging
import os
from pathlib import Path

import pytest

from ipadapter_trainer.config import DataConfig
from ipadapter_trainer.data.pictures import BrokenPictureError, decode
from ipadapter_trainer.data.records import DataError, Records
from ipadapter_trainer.data.sources import load_records, open_source
from support.pictures import encoded, gradient, write_folder, write_shards


def records(path: Path | str, **options: object) -> Records:
    return load_records(DataConfig(path=str(path), **options))


def keys(path: Path | str, **options: object) -> list[str]:
    return [record.key for record in records(path, **options)]


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(gradient(8, 8)))
        path.with_suffix(".txt").write_text("x")


def test_what_programs_leave_in_a_folder_is_not_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "a.png", tmp_path / "cats" / "b.png")
    put(tmp_path / ".ipynb_checkpoints" / "a-checkpoint.png", tmp_path / "cats" / "@eaDir" / "b.png" / "THUMB_XL.jpg")
    put(tmp_path / "__MACOSX" / "deep" / "a.png", tmp_path / "._a.png", tmp_path / ".thumbnails" / "a.png")
    assert keys(tmp_path) == ["a.png", "cats/b.png"]
    (message,) = [record.getMessage() for record in caplog.records]
    assert "5 pictures" in message
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "._a.png", ".thumbnails"):
        assert name in message


def test_files_of_other_kinds_are_said_once_with_their_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "a.png")
    for name in ("1.heic", "2.HEIC", "b.psd", "noted.json", "README"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nothing.png")
    (tmp_path / "ring.png").symlink_to(tmp_path / "gnir.png")
    (tmp_path / "gnir.png").symlink_to(tmp_path / "ring.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert keys(tmp_path) == ["a.png"]
    (message,) = [record.getMessage() for record in caplog.records]
    for part in (str(tmp_path), "2 .heic", "1 .psd", "1 .json", "1 without a suffix", "3 links that lead nowhere"):
        assert part in message


def test_nothing_is_said_where_nothing_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "a.png", tmp_path / "b" / "c.jpg")
    (tmp_path / "b" / "c.txt").rename(tmp_path / "b" / "c.caption")
    records(tmp_path)
    assert not caplog.records


def test_only_the_first_of_several_processes_says_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.png", tmp_path / "._b.png")
    monkeypatch.setenv("RANK", "1")
    records(tmp_path)
    assert not caplog.records


def test_linked_sub_folders_are_read_once_under_their_names_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    put(data / "a.png", data / "z" / "real.png", elsewhere / "b.png", elsewhere / "in" / "c.png")
    (data / "linked").symlink_to(elsewhere)
    (data / "again").symlink_to(elsewhere)
    (data / "a_link_to_z").symlink_to(data / "z")
    (elsewhere / "loop").symlink_to(data)
    (data / "up").symlink_to(tmp_path)
    assert keys(data) == ["a.png", "again/b.png", "again/in/c.png", "z/real.png"]
    assert [record.group for record in records(data, reference="group")] == ["", "again", "again/in", "z"]
    assert "4 links to folders that are read already" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".apng", ".JPG"])
def test_less_usual_suffixes_of_pictures_are_read(tmp_path: Path, suffix: str) -> None:
    put(tmp_path / f"a{suffix}")
    assert keys(tmp_path) == [f"a{suffix}"]


NAMES = ("set [1]", "a{1,2}", "{0..3}", "what?", "st*r", "a::b", "[!x]")


@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_exists_is_no_pattern(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path / name / "pictures", 2)
    assert keys(tmp_path / name / "pictures") == ["00.png", "01.png"]
    assert len(open_source(DataConfig(path=str(tmp_path / name)))) == 2
    (tmp_path / name / "list.csv").write_text("image,text\npictures/00.png,x\n")
    assert keys(tmp_path / name / "list.csv") == ["pictures/00.png"]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "a::b"])
def test_only_what_does_not_exist_of_a_pattern_is_one(tmp_path: Path, name: str) -> None:
    write_shards(tmp_path / name, 3, 1)
    (tmp_path / name / "._00.tar").write_bytes(b"")
    for pattern in ("*.tar", "{00..02}.tar", "0[0-2].tar", "{00,01,02}.tar"):
        urls = open_source(DataConfig(path=str(tmp_path / name / pattern))).urls
        assert [Path(url).name for url in urls] == ["00.tar", "01.tar", "02.tar"]
    assert len(open_source(DataConfig(path=str(tmp_path / name))).urls) == 3
    assert len(open_source(DataConfig(path=str(tmp_path / name / "00.tar"))).urls) == 1


def test_braces_follow_a_drive_of_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "made", 2, 1)
    for number in (0, 1):
        (tmp_path / "made" / f"0{number}.tar").rename(tmp_path / f"C:\\sets\\0{number}.tar")
    assert open_source(DataConfig(path="C:\\sets\\{00..01}.tar")).urls == ("C:\\sets\\00.tar", "C:\\sets\\01.tar")


def test_what_programs_leave_does_not_decide_what_a_folder_is(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "._old.tar").write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.parquet").write_bytes(b"")
    assert keys(tmp_path) == ["a.png"]


def crops(tmp_path: Path, *names: str) -> dict[str, object]:
    (tmp_path / "crops").mkdir(exist_ok=True)
    put(*(tmp_path / "crops" / name for name in names))
    return {"reference": "folder", "reference_folder": str(tmp_path / "crops")}


def listed(tmp_path: Path, *names: object) -> Path:
    path = tmp_path / "list.csv"
    path.write_text("image,text\n" + "".join(f"{name},x\n" for name in names))
    return path


def test_a_missing_reference_of_an_absolute_path_is_not_the_picture_itself(tmp_path: Path) -> None:
    paths = write_folder(tmp_path / "pictures", 2)
    found = records(listed(tmp_path, *paths), **crops(tmp_path, "01.jpg"))
    with pytest.raises(BrokenPictureError, match="no such file"):
        decode(found[0].reference)
    assert found[1].reference.name == str(tmp_path / "crops" / "01.jpg")


def test_absolute_paths_find_references_in_sub_folders(tmp_path: Path) -> None:
    paths = [*write_folder(tmp_path / "pictures" / "cats", 1), *write_folder(tmp_path / "pictures" / "dogs", 1)]
    found = records(listed(tmp_path, *paths), **crops(tmp_path, "cats/00.png", "dogs/00.png"))
    assert [Path(record.reference.name).parent.name for record in found] == ["cats", "dogs"]


@pytest.mark.parametrize("name", [".", "..", "/", "a/..", "00"])
def test_a_name_without_a_suffix_or_a_name_has_no_reference(tmp_path: Path, name: str) -> None:
    (record,) = records(listed(tmp_path, name), allow_outside=True, **crops(tmp_path, "01.png"))
    with pytest.raises(BrokenPictureError):
        decode(record.reference)


@pytest.mark.parametrize("is_list", [True, False])
def test_a_reference_that_several_pictures_would_take_is_that_of_its_own_one_alone(
    tmp_path: Path, is_list: bool
) -> None:
    folder = tmp_path / "pictures"
    for part in (folder, folder / "cat", folder / "dog"):
        write_folder(part, 1)
    write_folder(folder / "rat", 2)
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*.png"))]
    assert len(names) == 5
    settings = crops(tmp_path, "00.png", "cat/00.png", "01.png")
    if is_list:
        lines = "".join(f"{name},x\n" for name in names)
        (folder / "list.csv").write_text(f"image,text\n{lines}")
    found = {record.key: record.reference for record in records(folder / "list.csv" if is_list else folder, **settings)}
    for name in ("00.png", "cat/00.png"):
        assert found[name].name == str(tmp_path / "crops" / name)
    assert found["rat/01.png"].name == str(tmp_path / "crops" / "01.png"), "nobody else would take it"
    for name in ("dog/00.png", "rat/00.png"):
        with pytest.raises(BrokenPictureError, match="is the reference of 3 pictures of that name, so of none"):
            decode(found[name])


@pytest.mark.parametrize("how", ["above", "same", "dots"])
def test_a_picture_found_as_its_own_reference_is_skipped(tmp_path: Path, how: str) -> None:
    pictures = tmp_path / "pictures"
    write_folder(pictures, 1)
    name, folder = {"above": ("pictures/00.png", tmp_path), "same": ("pictures/00.png", pictures)}.get(
        how, ("crops/../pictures/00.png", tmp_path / "crops")
    )
    (tmp_path / "crops").mkdir()
    (record,) = records(listed(tmp_path, name), reference="folder", reference_folder=str(folder))
    for look in (decode, lambda picture: picture.identity):
        with pytest.raises(BrokenPictureError, match=r"no such file|is the picture itself"):
            look(record.reference)


def test_references_are_exactly_the_users_pictures_too(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", 2)
    options = crops(tmp_path, "._00.png", "@eaDir/00.png")
    put(tmp_path / "linked" / "01.jfif")
    (tmp_path / "crops" / "more").symlink_to(tmp_path / "linked")
    (tmp_path / "crops" / "00.png").write_bytes(b"")
    found = records(tmp_path / "pictures", **options)
    assert found[0].reference.name == str(tmp_path / "crops" / "00.png")


def test_a_folder_of_nothing_but_leftovers_says_so(tmp_path: Path) -> None:
    put(tmp_path / "._a.png")
    (tmp_path / "b.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"no pictures in .*left out: 1 \.heic, 1 picture .*\._a\.png"):
        records(tmp_path)
