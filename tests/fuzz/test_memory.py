"""The fuzz itself: it sees memory that a case takes beyond its file, and that alone."""

import os
import random
from pathlib import Path

import pytest

from support.fuzzing import BESIDE, Entry, Make, fuzz

MB = 1 << 20
_LIBRARIES: list[bytes] = []


def write_file(draw: random.Random, place: Path) -> str:
    (place / "file").write_bytes(bytes(100 * MB))
    return "whole"


def write_hole(draw: random.Random, place: Path) -> str:
    with (place / "file").open("wb") as file:
        file.truncate(100 * MB)
    return "hole"


def read_once(place: Path) -> None:
    (place / "file").read_bytes()


def read_twice(place: Path) -> None:
    first = (place / "file").read_bytes()
    assert first + b"x"


def import_libraries(place: Path) -> None:
    if not _LIBRARIES:
        _LIBRARIES.append(b"x" * 200 * MB)


def test_a_file_may_be_held_once() -> None:
    tally = fuzz(read_once, write_file, range(2), 0)
    assert not tally.failures
    assert 95 * MB <= tally.grown < 105 * MB  # less what the process had to spare
    assert f"{tally.grown / MB:.1f} MB" in str(tally)


@pytest.mark.parametrize(("make", "entry"), [(write_file, read_twice), (write_hole, read_once)], ids=["twice", "hole"])
def test_more_than_the_file_is_a_failure(make: Make, entry: Entry) -> None:
    ((outcome, cases),) = fuzz(entry, make, range(3), 0).failures.items()
    assert "took more than" in outcome
    assert cases == [0, 1, 2]


def test_what_only_the_first_case_needs_is_no_failure() -> None:
    tally = fuzz(import_libraries, write_hole, range(2), 0)
    assert not tally.failures
    assert tally.grown < BESIDE


def test_after_the_most_a_case_may_hold_the_next_has_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("support.fuzzing.MEMORY", 50 * MB)

    def hold(place: Path) -> None:
        (tmp_path / str(os.getpid())).touch()
        assert b"x" * 60 * MB

    tally = fuzz(hold, write_hole, range(3), 0)
    assert len(list(tmp_path.iterdir())) == tally.counts["failed"] == 3
