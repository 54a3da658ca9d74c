"""Lists as people's programs write them: every caption whole, or an error that names the row."""

import json
from pathlib import Path

import pytest

from ipadapter_trainer.config import DataConfig
from ipadapter_trainer.data.records import DataError
from ipadapter_trainer.data.sources import load_records, open_source
from support.pictures import encoded, gradient, write_folder, write_shard

ODD = "one\u2028two\u2029three\x85four\vfive\fsix\x1cseven"
"""Ends lines for Python's splitlines, and for nobody who writes lists."""
MARK = "\ufeff"


def captions(path: Path, text: str | bytes, **options: object) -> list[str]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [record.caption for record in load_records(DataConfig(path=str(path), **options))]


def lines(*texts: str) -> list[str]:
    return [
        json.dumps({"image": f"{number}.png", "text": text}, ensure_ascii=False) for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", MARK])
def test_only_line_feeds_end_lines(tmp_path: Path, end: str, mark: str) -> None:
    assert captions(tmp_path / "a.jsonl", mark + end.join([*lines(ODD, "b"), "", ""])) == [ODD, "b"]
    cells = f'{mark}image,text{end}0.png,{ODD}{end}1.png,"quoted{end}{ODD}, b"{end}'
    assert captions(tmp_path / "a.csv", cells) == [ODD, f"quoted\n{ODD}, b"]
    assert captions(tmp_path / "a.json", f"{mark}[{','.join(lines(ODD))}]") == [ODD]


def test_old_mac_lists_are_read(tmp_path: Path) -> None:
    assert captions(tmp_path / "a.csv", "image,text\r0.png,a cat\r1.png,a dog\r") == ["a cat", "a dog"]


def test_lists_put_behind_one_another_are_read(tmp_path: Path) -> None:
    joined = "\n".join(lines("a")) + "\n" + MARK + "\n".join(lines("b")) + "\n"
    assert captions(tmp_path / "a.jsonl", joined) == ["a", "b"]


def test_a_marked_caption_is_read_alike_everywhere(tmp_path: Path) -> None:
    (path,) = write_folder(tmp_path / "folder", 1)
    path.with_suffix(".txt").write_text("a cat", encoding="utf-8-sig")
    assert load_records(DataConfig(path=str(tmp_path / "folder")))[0].caption == "a cat"
    picture, marked = encoded(gradient(8, 8)), "a cat".encode("utf-8-sig")
    as_json = json.dumps({"text": "a cat"}).encode("utf-8-sig")
    write_shard(tmp_path / "0.tar", {"a": {"png": picture, "txt": marked}, "b": {"png": picture, "json": as_json}})
    assert [item.caption for item in open_source(DataConfig(path=str(tmp_path / "0.tar"))).read()] == ["a cat"] * 2


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        ("csv", "image,text\n0.png,a\n1.png,a cat, sitting, looking\n", r"row 2 .*4 cells for 2 columns.*in quotes"),
        ("csv", "image,text,\n0.png,a,\n1.png,a cat, sitting\n", r"row 2 .*' sitting'.*column without a name"),
        ("csv", "image,text,text\n0.png,a,b\n", r"two columns named text"),
        ("csv", 'image,text\n0.png,"a\n', r"is not CSV"),
        ("jsonl", "[" * 100_000 + "\n", r"is not JSON lines \(line 1"),
        ("jsonl", '{"image": "0.png", "text": "a", "size": ' + "9" * 5000 + "}\n", r"is not JSON lines \(line 1"),
        ("json", "[" * 100_000, r"is not JSON"),
        ("json", '[{"image": "0.png", "text": "a\\ud800b"}]', r"row 1 .* half a character"),
        ("jsonl", '{"image": "0\\ud800.png", "text": "a"}\n', r"line 1 .* half a character"),
    ],
    ids=["surplus", "unnamed", "twice", "quote", "deep-line", "digits", "deep", "surrogate", "surrogate-name"],
)
def test_what_would_lose_a_part_is_an_error_that_names_the_row(
    tmp_path: Path, suffix: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        captions(tmp_path / f"a.{suffix}", text)
    assert f"a.{suffix}" in str(caught.value)


def test_an_index_without_a_name_is_no_harm(tmp_path: Path) -> None:
    """pandas writes one first."""
    assert captions(tmp_path / "a.csv", ",image,text,\n0,0.png,a cat,\n1,1.png,a dog,\n") == ["a cat", "a dog"]
