"""What a data set opens: files by their names, whatever these look like, and addresses only where the user wrote them."""

import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import pytest
from datasets import Dataset

from ipadapter_trainer.config import DataConfig
from ipadapter_trainer.data.records import DataError
from ipadapter_trainer.data.shards import Shards
from ipadapter_trainer.data.sources import open_source
from support.pictures import write_shards

HOSTILE = (
    "pipe:touch pwned; cat 00.tar; echo .tar",
    "gopen:00.tar",
    "http:00.tar",
    "https:00.tar",
    "file:00.tar",
    "hf:00.tar",
    "gs:00.tar",
    "pipe:touch pwned2::00.tar",
)
IN_BRACES = "{{0..1}}{name}"  # where :: separates several
PATTERNS = ("*.tar", ".", IN_BRACES, "{name}", "./{name}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is also the working folder, as a user's is who writes data.path = "*.tar"."""
    write_shards(tmp_path, 1, 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path.with_name("datasets-cache"))
    return tmp_path


def captions(path: str, **options: object) -> list[str]:
    source = open_source(DataConfig(path=path, **options))
    assert isinstance(source, Shards)
    return [item.caption for item in source.read()]


@pytest.mark.parametrize(
    ("pattern", "name"),
    [(pattern, name) for pattern in PATTERNS for name in HOSTILE if pattern != IN_BRACES or "::" not in name],
)
def test_a_file_name_is_never_a_command_or_an_address(folder: Path, pattern: str, name: str) -> None:
    data = (folder / "00.tar").read_bytes()
    names = {IN_BRACES: [f"0{name}", f"1{name}"]}.get(pattern, [name])
    (folder / "00.tar").unlink()
    for each in names:
        (folder / each).write_bytes(data)
    assert captions(pattern.format(name=name), format="webdataset") == ["picture 0", "picture 1"] * len(names)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names), "nothing ran"


@pytest.mark.parametrize("path", ["{pipe:touch pwned,00}.tar", "[p]ipe:touch pwned", "gopen:x.tar", "C:\\sets\\00.tar"])
def test_what_only_expands_to_a_url_or_looks_like_one_is_a_missing_file(folder: Path, path: str) -> None:
    with pytest.raises(DataError, match=r"does not exist, of \d shards|no shards match"):
        open_source(DataConfig(path=path, format="webdataset"))
    assert not (folder / "pwned").exists()


def test_a_windows_path_is_a_file_and_no_address(folder: Path) -> None:
    (folder / "00.tar").rename(folder / "C:\\sets\\00.tar")
    assert captions("C:\\sets\\00.tar") == ["picture 0", "picture 1"]


def test_a_file_url_is_opened_as_the_file_it_names(folder: Path) -> None:
    (folder / "00.tar").rename(folder / "a b.tar")
    assert captions((folder / "a b.tar").as_uri()) == ["picture 0", "picture 1"]


def test_a_command_runs_only_where_it_is_written_and_allowed(folder: Path) -> None:
    command = "pipe:touch pwned; cat 00.tar"
    for path in (command, f"00.tar::{command}", command.replace("pipe", "Pipe")):
        with pytest.raises(DataError, match=r"runs a command.*data\.allow_pipe"):
            open_source(DataConfig(path=path))
    assert not (folder / "pwned").exists()
    assert captions(command, allow_pipe=True) == ["picture 0", "picture 1"]
    assert (folder / "pwned").exists()


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads http with curl")
def test_a_written_address_is_read_from_there(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    served = tmp_path_factory.mktemp("served")
    for name in ("00.tar", "01.tar"):
        (served / name).write_bytes((folder / "00.tar").read_bytes())
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=served)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert captions(f"{address}/{{00..01}}.tar::00.tar") == ["picture 0", "picture 1"] * 3
        server.shutdown()


def test_braces_that_do_not_match_are_said(folder: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_source(DataConfig(path="x{0..", format="webdataset"))


def write_table(folder: Path, card: str = "") -> Path:
    folder.mkdir(parents=True)
    Dataset.from_dict({"image": ["a.png"], "text": ["A cat"]}).to_parquet("made.parquet")  # it reads names likewise
    Path("made.parquet").rename(folder / "train.parquet")
    if card:
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files: {card}\n---\n")
    return folder


@pytest.mark.parametrize(
    "files", ["http://127.0.0.1:9/x.parquet", "[train.parquet, '../other/*']", "{train: 'zip://x::y'}", "/etc/*"]
)
def test_a_card_inside_a_folder_sends_nobody_elsewhere(folder: Path, files: str) -> None:
    card = f"\n  - split: train\n    path: {files}" if files.startswith("[") else files
    table = write_table(folder / "set", card)
    for name in ("README.md", ".huggingface.yaml"):
        with pytest.raises(DataError, match=rf"{re.escape(name)} names .* outside the folder"):
            open_source(DataConfig(path=str(table)))
        if name == "README.md":
            text = (table / name).read_text().replace("---\n", "")
            (table / name).unlink()
            (table / ".huggingface.yaml").write_text(text)


def test_a_card_that_names_the_folders_own_files_is_followed(folder: Path) -> None:
    table = write_table(folder / "set", "train*.parquet")
    assert [record.caption for record in open_source(DataConfig(path=str(table)))] == ["A cat"]


@pytest.mark.parametrize("name", ["http::x", "sets [1]", "st*r"])
def test_a_name_that_datasets_takes_for_a_pattern_is_said(folder: Path, name: str) -> None:
    table = write_table(folder / name)
    for path in (table, table / "train.parquet"):
        with pytest.raises(DataError, match=r"characters that datasets takes for a pattern.*rename"):
            open_source(DataConfig(path=str(path)))
