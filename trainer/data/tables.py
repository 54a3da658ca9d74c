"""Records from a folder of pictures, and from JSON, JSONL and CSV lists."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..config import DataSetConfig
from .columns import Columns, captions_in, find_columns, no_caption
from .folders import CAPTION_SUFFIXES, contents
from .identities import WithIdentity, json_numbers
from .pictures import SUFFIXES, FilePicture, NoPicture, Picture, is_inside
from .records import DataError, Record, Records, RowList
from .rows import READERS, Row, read_text

_ITSELF = "is the picture itself, which data.reference_folder was to have another of"
_logger = logging.getLogger(__name__)
LISTS = {f".{name}": name for name in READERS}
"""Formats of lists by the ends of their names."""
METADATA_FILES = {"metadata.jsonl": "jsonl", "metadata.csv": "csv"}
"""Lists that Hugging Face's imagefolder keeps inside the folder."""


def load_folder(data: DataSetConfig, *, speaks: bool = True) -> Records:
    """Pictures of a folder and its sub-folders, each with its caption beside it; the sub-folder is the group.

    Args:
        speaks: a line of the log says what was left out.

    Raises:
        DataError: no pictures, one without a caption, or a list inside that cannot be read.
    """
    root = Path(data.path)
    for list_name, list_format in METADATA_FILES.items():
        if (root / list_name).is_file():
            return load_list(data, root / list_name, list_format)
    _refuse_columns(data)
    found = contents(root)
    paths, left_out = found.ending_in(SUFFIXES), found.left_out()
    if not paths:
        raise DataError(
            f"no pictures in {root}" + (f" (left out: {left_out})" if left_out else ""),
            expected=f"files ending in {', '.join(SUFFIXES)}, in the folder or its sub-folders",
            action="correct data.path or data.format",
        )
    if speaks and left_out and int(os.environ.get("RANK", 0)) == 0:  # once, not by each process of a run
        _logger.warning("left out of the pictures in %s: %s", root, left_out)
    references = _References(data, (path.relative_to(root) for path in paths))
    rows = RowList()
    for path in paths:
        name = path.relative_to(root)
        image = FilePicture(path)
        group = name.parent.as_posix() if name.parent.name else ""
        reference = references.of(name, image)
        rows.append(Record(name.as_posix(), _caption_beside(path, data), image, reference, group=group))
    return Records(rows, [row.group for row in rows] if data.reference == "group" else None)


def load_list(data: DataSetConfig, path: Path, list_format: str) -> Records:
    """Rows of a json, jsonl or csv file. Pictures that are missing are found out when they are read.

    Raises:
        DataError: the file is missing or no such list, or a column or a caption is missing.
    """
    table = READERS[list_format](path)
    if not table:
        raise DataError(f"{path} has no rows", expected="one row per picture", action="correct data.path")
    names = dict.fromkeys(name for row in table for name in row.values)
    columns = find_columns(names, data, str(path))
    root = Path(data.image_root) if data.image_root else path.parent
    pictures = (PurePath(row.text(columns.image, path)) for row in table) if data.reference_folder else ()
    place = _Place(path, root, _References(data, pictures), data.allow_outside)
    seen: Counter[str] = Counter()
    rows = RowList()
    for row in table:
        name = row.file_name(columns.image, path)
        seen[name] += 1
        key = name if seen[name] == 1 else f"{name}#{seen[name]}"
        rows.append(_record(row, key, columns, place, data))
    return Records(rows, [row.group for row in rows] if data.reference == "group" else None)


@dataclass(frozen=True)
class _Place:
    path: Path
    root: Path
    references: "_References"
    may_leave: bool

    def with_identity(self, row: Row, column: str | None, picture: Picture) -> Picture:
        """A picture with the ready embedding of its face, or as it is. Raises DataError as `picture`."""
        if column is None:
            return picture
        ready = row.values.get(column)
        if isinstance(ready, str) and ready.lstrip().startswith("["):  # a csv has no lists
            ready = json_numbers(ready)
        return WithIdentity(picture, self.picture(row, column).path if isinstance(ready, str) and ready else ready)

    def picture(self, row: Row, column: str) -> FilePicture:
        """Raises DataError if it is outside the root, and the config does not say that it may be."""
        name = row.file_name(column, self.path)
        picture = FilePicture(self.root / name)
        if not self.may_leave and not is_inside(self.root, picture.path):
            raise DataError(
                f"{row.where} of {self.path} names {name!r}, which is outside {self.root}",
                expected="pictures in the folder of the list, or in data.image_root",
                action="set data.image_root to a folder that all pictures are in; or, if you trust the list, "
                "data.allow_outside = true",
            )
        return picture


def _record(row: Row, key: str, columns: Columns, place: _Place, data: DataSetConfig) -> Record:
    def picture(column: str) -> FilePicture:
        return place.picture(row, column)

    image = picture(columns.image)
    captions = captions_in(row.values.get(columns.caption) if columns.caption else None) or captions_in(data.caption)
    if not captions:
        raise no_caption(f"{row.where} of {place.path}", data, f"in column {columns.caption}")
    name = PurePath(row.text(columns.image, place.path))
    reference: Picture = picture(columns.reference) if columns.reference else place.references.of(name, image)
    is_itself = reference is image
    reference = place.with_identity(row, columns.identity, reference)
    return Record(
        key,
        captions[0],
        reference if is_itself else image,  # of a group it is another's reference
        reference,
        picture(columns.mask) if columns.mask else None,
        row.text(columns.group, place.path) if columns.group else "",
        captions[1:],
    )


class _References:
    """References under the same name in another folder; the suffix may differ."""

    def __init__(self, data: DataSetConfig, names: Iterable[PurePath]) -> None:
        """`names` are those of all pictures: a reference that has fewer folders than they may be that of one only."""
        self._folder = Path(data.reference_folder) if data.reference_folder else None
        self._paths: dict[str, Path] = {}
        self._claims: Counter[str] = Counter()
        if self._folder is None:
            return
        if not self._folder.is_dir():
            raise DataError(
                f'data.reference_folder = "{self._folder}", which is no folder',
                expected="a folder with a reference under each picture's name",
                action="correct data.reference_folder",
            )
        for path in contents(self._folder).ending_in(SUFFIXES):
            self._paths.setdefault(path.relative_to(self._folder).with_suffix("").as_posix(), path)
        self._claims.update(stem for name in set(names) if (stem := self._stem(name)) is not None)

    def of(self, name: PurePath, image: FilePicture) -> Picture:
        """The one of the same name, of an absolute path that with most of its folders; it may be missing."""
        if self._folder is None:
            return image
        stem = self._stem(name)
        if stem is None:  # an absolute name, or one with "..", would lead to the picture itself
            is_elsewhere = name.is_absolute() or ".." in name.parts
            return FilePicture(self._folder / (name.name if is_elsewhere else name))
        found = self._paths[stem]
        if self._claims[stem] > 1 and stem != name.with_suffix("").as_posix():
            return NoPicture(str(found), f"is the reference of {self._claims[stem]} pictures of that name, so of none")
        return (
            NoPicture(str(found), _ITSELF)
            if os.path.abspath(found) == os.path.abspath(image.path)
            else FilePicture(found)
        )

    def _stem(self, name: PurePath) -> str | None:
        parts = (*name.parent.parts, name.stem)
        stems = ("/".join(parts[first:]) for first in range(len(parts)))
        return next((stem for stem in stems if stem in self._paths), None)


def _refuse_columns(data: DataSetConfig) -> None:
    named = [name for name in type(data).model_fields if name.endswith("_column") and getattr(data, name) is not None]
    if named:
        raise DataError(
            f"data.{named[0]} for {data.path}, a folder without {' or '.join(METADATA_FILES)}",
            expected="a table for columns",
            action=f"remove data.{named[0]}, or put a metadata.csv with file_name and text into the folder",
        )


def _caption_beside(path: Path, data: DataSetConfig) -> str:
    for suffix in CAPTION_SUFFIXES:
        file = path.with_suffix(suffix)
        if file.is_file():
            return read_text(file).strip()
    if data.caption is None:
        raise no_caption(str(path), data, f"in {path.with_suffix(CAPTION_SUFFIXES[0]).name} beside it")
    return data.caption
