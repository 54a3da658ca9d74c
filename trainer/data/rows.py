"""Rows of JSON, JSON lines and CSV files, none of which loses a part."""

import csv
import errno
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .columns import listed
from .records import DataError

_MARK = "\ufeff"  # some programs put it first
_UTF8 = "utf-8-sig"  # with or without it


@dataclass(frozen=True)
class Row:
    """One row of a list.

    Attributes:
        where: "row 3" or "line 3".
    """

    where: str
    values: Mapping[str, object]

    def text(self, column: str, path: Path) -> str:
        """A cell that must have a text. Raises DataError."""
        value = self.values.get(column)
        if isinstance(value, int):  # names of groups and of files are often numbers
            return str(value)
        if not isinstance(value, str) or not value:
            raise DataError(
                f"{self.where} of {path} has {'no' if value in (None, '') else 'no text as'} {column}",
                expected=f"a text in every row; this one's columns are {listed(self.values.keys())}",
                action="complete the row or remove it",
            )
        return value

    def file_name(self, column: str, path: Path) -> str:
        """A cell that must have the name of a file. Raises DataError."""
        name = self.text(column, path)
        if "\0" in name:
            raise DataError(
                f"{self.where} of {path} has a NUL character in {column}: {name!r}",
                expected="the name of a file",
                action="correct the row or remove it",
            )
        return name


def read_text(path: Path) -> str:
    """A text file, whose lines end at line feeds alone. Raises DataError."""
    try:
        if path.exists() and not (
            path.is_file() or path.is_dir()
        ):  # a pipe would wait for a writer, a device never end
            raise OSError(errno.EINVAL, "a pipe or a device, no file")
        with path.open(encoding=_UTF8, newline="") as file:
            text = file.read().replace("\r\n", "\n")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror})", expected="a readable file", action="correct data.path"
        ) from error
    except UnicodeDecodeError as error:
        raise _not(path, "UTF-8 text", error) from error
    return text if "\n" in text else text.replace("\r", "\n")


def _read_json(path: Path) -> list[Row]:
    try:
        rows = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise _not(path, "JSON", error) from error
    if not isinstance(rows, list):
        raise _not(path, "a JSON list", f"it holds a {type(rows).__name__}")
    return [_as_row(path, f"row {number}", row) for number, row in enumerate(rows, 1)]


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.strip().removeprefix(_MARK)  # lists put behind one another have it further down as well
        if not line:
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _not(path, "JSON lines", f"line {number}: {error}") from error
        rows.append(_as_row(path, f"line {number}", row))
    return rows


def _read_csv(path: Path) -> list[Row]:
    lines = (f"{line}\n" for line in read_text(path).split("\n"))
    try:
        header, *rows = [cells for cells in csv.reader(lines, strict=True) if cells] or [[]]
    except csv.Error as error:
        raise _not(path, "CSV", error) from error
    twice = [name for name, times in Counter(header).items() if name and times > 1]
    if twice:
        raise DataError(
            f"{path} has two columns named {twice[0]}", expected="each name once", action="rename or remove one"
        )
    return [_csv_row(path, f"row {number}", header, cells) for number, cells in enumerate(rows, 1)]


READERS: dict[str, Callable[[Path], list[Row]]] = {"json": _read_json, "jsonl": _read_jsonl, "csv": _read_csv}


def _csv_row(path: Path, where: str, header: list[str], cells: list[str]) -> Row:
    if len(cells) > len(header):
        raise _surplus(path, where, f"has {len(cells)} cells for {len(header)} columns ({listed(header)})")
    # the first may lack a name: it is the index that pandas writes
    lost = [cell for name, cell in list(zip(header, cells, strict=False))[1:] if cell and not name]
    if lost:
        raise _surplus(path, where, f"has {lost[0]!r} in a column without a name")
    return _as_row(path, where, {name: cell or None for name, cell in _filled(header, cells) if name})


def _filled(header: list[str], cells: list[str]) -> Iterator[tuple[str, str]]:
    return zip(header, cells + [""] * (len(header) - len(cells)), strict=True)


def _surplus(path: Path, where: str, what: str) -> DataError:
    return DataError(
        f"{where} of {path} {what}",
        expected="a cell for each column",
        action='put a text with commas in quotes: 1.png,"A cat, sitting"',
    )


def _as_row(path: Path, where: str, row: object) -> Row:
    if not isinstance(row, dict):
        raise _not(path, "a list of objects", f"{where} is a {type(row).__name__}")
    for name, value in row.items():
        if not all(_is_whole(text) for text in _texts_of(value)):
            raise _not(path, "whole text", f"{where} has half a character in {name}")
        if not _is_whole(name):
            raise _not(path, "whole text", f"{where} has half a character in the name of a column")
    return Row(where, row)


def _texts_of(value: object) -> list[str]:
    """The texts that a cell may be read as."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str)]


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _not(path: Path, what: str, why: object) -> DataError:
    return DataError(
        f"{path} is not {what} ({why})",
        expected='rows such as {"image_file": "1.png", "text": "A dog"}',
        action="correct the file or data.format",
    )
