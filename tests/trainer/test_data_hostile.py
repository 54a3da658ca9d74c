"""Data sets that a stranger sends: a broken picture is skipped with its reason, a broken list is one message with its row."""

import gzip
import io
import json
import os
import struct
import tarfile
import zlib
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image, features

from ipadapter_trainer.batch import Skipped
from ipadapter_trainer.config import DataConfig
from ipadapter_trainer.data.digests import DigestMemo
from ipadapter_trainer.data.own_references import own_references
from ipadapter_trainer.data.pictures import BrokenPictureError, BytesPicture, FilePicture, decode
from ipadapter_trainer.data.records import DataError, Records, split_validation
from ipadapter_trainer.data.shards import Shards
from ipadapter_trainer.data.sources import open_source
from support.pictures import encoded, gradient, write_folder

WHOLE = encoded(gradient(16, 16))


def png_of_size(width: int, height: int) -> bytes:
    """A few bytes that promise many pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return WHOLE[:8] + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + WHOLE[33:]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a picture of a kind"),
        (b"DDS " + bytes(124), "not a picture of a kind"),
        (encoded(gradient(8, 8), "DDS"), "not a picture of a kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture of a kind"),
        (png_of_size(1 << 20, 1 << 20), "DecompressionBombError"),
        (png_of_size(0, 16), "not a picture of a kind|Error"),
        (WHOLE[:60], "Error|truncated"),
        (WHOLE[:-40], "Error|truncated"),
        (encoded(gradient(64, 64), "JPEG")[:300], "Truncated"),
        (encoded(gradient(64, 64), "WEBP")[:-60], "Error|kind"),
        (encoded(gradient(64, 64), "GIF")[:-200], "Error|truncated"),
    ],
    ids=[
        "empty",
        "dds-cut",
        "dds",
        "eps",
        "bomb",
        "no-width",
        "png-head",
        "png-cut",
        "jpeg-cut",
        "webp-cut",
        "gif-cut",
    ],
)
def test_a_broken_picture_says_what_is_wrong(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenPictureError, match=reason):
        decode(BytesPicture("x", data))


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_what_an_avif_decoder_raises_is_a_broken_picture() -> None:
    whole = encoded(gradient(32, 32), "AVIF")
    broken = 0
    for place in range(0, len(whole), 3):
        try:
            decode(BytesPicture("x", whole[:place] + b"\xff\xff" + whole[place + 2 :]))
        except BrokenPictureError:
            broken += 1
    assert broken > 10


@pytest.mark.parametrize("size", [(1, 16_000), (16_000, 1)])
def test_a_strip_is_a_picture(size: tuple[int, int]) -> None:
    assert decode(BytesPicture("x", encoded(gradient(*size)))).size == size[::-1]


def test_a_wrong_suffix_and_bad_extras_are_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(
        encoded(gradient(8, 8), "JPEG", icc_profile=b"x" * 99, exif=b"Exif\0\0II*\0\xff\xff")
    )
    assert decode(FilePicture(tmp_path / "a.png")).size == (8, 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_a_transparent_picture_laid_over_white_in_bands_is_as_in_one(mode: str) -> None:
    image = gradient(300, 20_000).convert("RGBA")  # several bands
    image.putalpha(gradient(300, 20_000, 7).getchannel("R"))
    image = image.convert(mode)
    white = Image.new("RGBA", image.size, "white")
    wanted = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    assert decode(BytesPicture("x", encoded(image))).tobytes() == wanted.tobytes()


def rows(suffix: str, text: str, folder: Path) -> Path:
    path = folder / f"list.{suffix}"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        ("jsonl", '{"image": "a\\u0000.png", "text": "x"}', r"line 1 .*NUL character in image"),
        ("csv", 'image,text\n"a\0.png",x\n', r"NUL"),
        ("jsonl", '{"image": "a.png", "text": ["x", "\\ud800"]}', r"line 1 has half a character in text"),
        (
            "json",
            '[{"image": "a.png", "text": "x", "\\ud800": 1}]',
            r"row 1 has half a character in the name of a column",
        ),
        ("json", '[{"image": {"path": "a.png"}, "text": "x"}]', r"row 1 .*no text as image"),
        ("json", '[{"image": "a.png", "text": ' + "[" * 10_000, r"is not JSON"),
        ("json", '[{"image": "a.png", "n": ' + "7" * 5000 + "}]", r"is not JSON"),
        ("json", "[[]]", r"row 1 is a list"),
        ("csv", "image,text\na.png," + "x" * 200_000 + "\n", r"is not CSV .*field"),
        ("json", '"x"', r"it holds a str"),
    ],
    ids=["nul", "nul-csv", "surrogate-of-several", "surrogate-key", "object", "deep", "digits", "list", "huge", "text"],
)
def test_a_broken_list_is_a_message_with_its_row(tmp_path: Path, suffix: str, text: str, message: str) -> None:
    path = rows(suffix, text, tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        open_source(DataConfig(path=str(path)))
    assert path.name in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_in_place_of_a_list_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.json")
    with pytest.raises(DataError, match="a pipe or a device"):
        open_source(DataConfig(path=str(tmp_path / "list.json"), format="json"))


OUTSIDE = ("../secret.png", "sub/../../secret.png", "{folder}/secret.png", "./..//secret.png")


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("column", ["image", "reference", "mask"])
def test_a_list_names_pictures_of_its_folder_unless_the_config_says_so(tmp_path: Path, name: str, column: str) -> None:
    (tmp_path / "secret.png").write_bytes(WHOLE)
    (tmp_path / "set" / "sub").mkdir(parents=True)
    row = {"image": "a.png", "reference": "a.png", "mask": "a.png", "text": "x"} | {
        column: name.format(folder=tmp_path)
    }
    path = rows("jsonl", json.dumps(row), tmp_path / "set")
    options = {"reference": "column", "reference_column": "reference", "mask_column": "mask", "path": str(path)}
    with pytest.raises(DataError, match=r"line 1 of .*outside .*data\.image_root .*data\.allow_outside = true"):
        open_source(DataConfig(**options))
    for allowed in (
        {"allow_outside": True},
        {"image_root": str(tmp_path)} if name.startswith("{") else {"allow_outside": True},
    ):
        (record,) = open_source(DataConfig(**options, **allowed))
        assert decode(getattr(record, column)).size == (16, 16)


def test_paths_inside_and_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(WHOLE)
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.png").symlink_to(tmp_path / "blob")
    for name in (str(folder / "a.png"), "../set/a.png", "./a.png"):
        (record,) = open_source(DataConfig(path=str(rows("jsonl", json.dumps({"image": name, "text": "x"}), folder))))
        assert decode(record.image).size == (16, 16)


def test_references_to_draw_from_stay_in_their_folder_as_well(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(WHOLE)
    (tmp_path / "set").mkdir()
    path = rows("jsonl", json.dumps({"image": "../secret.png"}), tmp_path / "set")
    with pytest.raises(DataError, match="outside"):
        own_references(str(path), may_leave=False)
    assert len(own_references(str(path), may_leave=True)) == 1


def test_a_table_names_pictures_of_its_folder_unless_the_config_says_so(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(WHOLE)
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.png").write_bytes(WHOLE)
    names = [str(folder / "a.png"), str(tmp_path / "secret.png"), "../" * 40 + str(tmp_path / "secret.png")[1:]]
    Dataset.from_dict({"image": names, "text": ["x"] * len(names)}).to_parquet(folder / "train.parquet")
    inside, *outside = open_source(DataConfig(path=str(folder / "train.parquet")))
    assert decode(inside.image).size == (16, 16)
    for record in outside:
        with pytest.raises(BrokenPictureError, match=r"outside the data set; data\.allow_outside"):
            decode(record.image)
    allowed = open_source(DataConfig(path=str(folder / "train.parquet"), allow_outside=True))
    assert all(decode(record.image).size == (16, 16) for record in allowed)


def shard(folder: Path, *entries: tuple[tarfile.TarInfo, bytes], **options: object) -> list[str | Skipped]:
    """Captions of a tar file with these members behind a whole sample, or what was skipped."""
    with tarfile.open(folder / "0.tar", "w", **options) as tar:
        for name, data in (("0.png", WHOLE), ("0.txt", b"a cat")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for entry, data in entries:
            tar.addfile(entry, io.BytesIO(data))
    return read(folder / "0.tar")


def read(path: Path) -> list[str | Skipped]:
    source = open_source(DataConfig(path=str(path)))
    assert isinstance(source, Shards)
    return [item if isinstance(item, Skipped) else item.caption for item in source.read()]


def member(name: str, data: bytes = WHOLE, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry, data


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_what_is_no_file_of_a_shard_is_not_read(tmp_path: Path, kind: bytes) -> None:
    whole, skipped = shard(
        tmp_path, member("1.png", b"", type=kind, linkname="/etc/hostname"), member("1.txt", b"a link")
    )
    assert whole == "a cat"
    assert isinstance(skipped, Skipped)
    assert "no picture among the members" in skipped.reason


@pytest.mark.parametrize("name", ["../../../1", "/etc/1", "\udcff1", "\x1b[31m1"])
def test_names_of_members_lead_nowhere(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert shard(tmp_path / "a" / "b", member(f"{name}.png"), member(f"{name}.txt", b"a dog")) == ["a cat", "a dog"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["0.tar"]


def damaged(folder: Path, picture: tuple[tarfile.TarInfo, bytes], **options: object) -> list[str | Skipped]:
    """Two samples, of which the second's picture is this one."""
    return shard(folder, member("1.txt", b"a dog"), picture, member("2.png"), member("2.txt", b"a fox"), **options)


@pytest.mark.parametrize("number", ["9" * 5000, "-1000"])
def test_a_broken_pax_header_ends_the_shard_there(tmp_path: Path, number: str) -> None:
    *whole, skipped = damaged(tmp_path, member("1.png", pax_headers={"size": number}), format=tarfile.PAX_FORMAT)
    assert whole == ["a cat"]
    assert isinstance(skipped, Skipped)


def test_a_pax_header_that_is_no_record_ends_the_shard_there(tmp_path: Path) -> None:
    damaged(tmp_path, member("1.png", pax_headers={"comment": "a" * 40}), format=tarfile.PAX_FORMAT)
    data = (tmp_path / "0.tar").read_bytes()
    assert b"52 comment=" in data
    for record in (b"99 comment=", b"\xff\xff comment=", b"-9 comment=", b"00 comment=", b"52_comment="):
        (tmp_path / "0.tar").write_bytes(data.replace(b"52 comment=", record))
        whole, *others = read(tmp_path / "0.tar")
        assert whole == "a cat"
        assert all(isinstance(other, Skipped) or other in ("a dog", "a fox") for other in others)


def test_a_sparse_member_is_not_filled_with_zeros(tmp_path: Path) -> None:
    shape = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,8"}
    *whole, skipped = damaged(tmp_path, member("1.png", bytes(8), pax_headers=shape), format=tarfile.PAX_FORMAT)
    assert whole == ["a cat"]
    assert isinstance(skipped, Skipped)
    assert "is sparse" in skipped.reason


def test_a_size_that_no_picture_has_is_not_reserved(tmp_path: Path) -> None:
    damaged(tmp_path, member("1.png"))
    data = bytearray((tmp_path / "0.tar").read_bytes())
    start = data.index(b"1.png")
    data[start + 124 : start + 136] = b"\x80" + bytes(6) + b"\xff" * 5
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    (tmp_path / "0.tar").write_bytes(data)
    *whole, skipped = read(tmp_path / "0.tar")
    assert whole == ["a cat"]
    assert isinstance(skipped, Skipped)
    assert "is said to have 1,099,511,627,775 bytes" in skipped.reason


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_that_unpacks_to_gigabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    *whole, skipped = damaged(tmp_path, member("1.png", bytes(2 << 20), type=kind), format=tarfile.GNU_FORMAT)
    assert whole == ["a cat"]
    assert isinstance(skipped, Skipped)
    assert "a header of 2,097,152 bytes" in skipped.reason


def test_a_packed_shard_that_is_cut_off_ends_there(tmp_path: Path) -> None:
    shard(
        tmp_path,
        *[
            pair
            for number in range(1, 40)
            for pair in (member(f"{number}.png", os.urandom(900)), member(f"{number}.txt", b"x"))
        ],
    )
    packed = gzip.compress((tmp_path / "0.tar").read_bytes())
    (tmp_path / "0.tar").write_bytes(packed[: len(packed) // 2])
    first, *_, last = read(tmp_path / "0.tar")
    assert first == "a cat"
    assert isinstance(last, Skipped)


@pytest.mark.parametrize("content", [b"[" * 10_000, b'{"text": "\\ud800"}', b'{"n": ' + b"9" * 5000 + b"}", b"\xff"])
def test_a_shards_json_that_is_none_is_a_message(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"the caption of 0\.tar/1 .* is no text"):
        shard(tmp_path, member("1.png"), member("1.json", content))


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_file_name_that_is_no_utf8_is_a_name(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Path(odd).write_bytes(WHOLE)
    Path(odd).with_suffix(".txt").write_text("odd")
    records = open_source(DataConfig(path=str(tmp_path)))
    assert isinstance(records, Records)
    trained, held = split_validation(records, 1, 0)
    memo = DigestMemo(tmp_path / "memo.sqlite")
    digests = [memo.digest(record.image) for part in (trained, held) for record in part]
    memo.flush()
    again = DigestMemo(tmp_path / "memo.sqlite")
    assert [again.digest(record.image) for part in (trained, held) for record in part] == digests
