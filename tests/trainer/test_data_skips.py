"""The list of broken pictures: each once, shares that are right, and no harm from a crash."""

import json
import logging
from pathlib import Path

import pytest
import torch

from ipadapter_trainer.batch import Batch, Skipped
from ipadapter_trainer.data.records import DataError
from ipadapter_trainer.data.skips import SkipLog, read_skipped


def skipping(*names: str, read: int = 1) -> Batch:
    nothing = torch.zeros(0)
    return Batch(
        positions=(0,) * read, keys=(), captions=(), drop_image=nothing, latent_noise=nothing, noise=nothing,
        times=nothing, sizes=nothing, skipped=tuple(Skipped(name, f"/{name}", "cut") for name in names),
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
    with pytest.raises(DataError, match=r"7 of 102 pictures read so far"):
        log.add(skipping("g", read=5))


def test_of_a_stream_each_process_counts_what_it_read_itself(tmp_path: Path) -> None:
    """The list is one; else the broken pictures of all would be a share of what one has read."""
    logs = [SkipLog(tmp_path / "skipped.jsonl", 0.05, None) for _ in range(4)]
    for step in range(100):
        for rank, log in enumerate(logs):
            log.add(skipping(*([f"{rank}-{step}"] if step % 25 == 0 else []), read=1))
    assert len(read_skipped(tmp_path / "skipped.jsonl")) == 16
    with pytest.raises(DataError, match=r"6 of 106 pictures read so far"):
        logs[0].add(skipping("a", "b", read=0))


def test_of_a_stream_the_share_does_not_sink_with_every_epoch(tmp_path: Path) -> None:
    log = SkipLog(tmp_path / "skipped.jsonl", 0.05, None)
    for _ in range(9):
        log.add(skipping("same", read=10))
    with pytest.raises(DataError, match=r"10 of 110 pictures read so far cannot be used, the first /same "):
        log.add(skipping("same", read=10))
    assert len(read_skipped(tmp_path / "skipped.jsonl")) == 1


def test_a_list_with_a_torn_last_line_goes_on(tmp_path: Path) -> None:
    """A crash while a line was written, or a disk that was full."""
    path = tmp_path / "skipped.jsonl"
    SkipLog(path, 0.5, 100).add(skipping("a", "b"))
    path.write_bytes(path.read_bytes()[:-20])
    assert [skipped.path for skipped in read_skipped(path)] == ["/a"]
    for _ in range(2):
        SkipLog(path, 0.5, 100).add(skipping("b", "c"))
    assert [skipped.path for skipped in read_skipped(path)] == ["/a", "/b", "/c"]


@pytest.mark.parametrize("line", ["[1]", '{"key": "a"}', '{"key": "c", "pa{"key": "b"}', "[" * 100_000, "\udcff"])
def test_a_line_that_is_no_entry_of_the_list_is_left_out(tmp_path: Path, line: str) -> None:
    path = tmp_path / "skipped.jsonl"
    SkipLog(path, 0.5, 100).add(skipping("a"))
    with path.open("ab") as file:
        file.write(line.encode(errors="surrogateescape") + b"\n")
    SkipLog(path, 0.5, 100).add(skipping("b"))
    assert [skipped.path for skipped in read_skipped(path)] == ["/a", "/b"]
