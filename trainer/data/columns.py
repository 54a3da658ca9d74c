"""Which column of a table is the picture, the caption and so on, and what to say when it is not there."""

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import DataSetConfig
from .records import DataError

IMAGE_COLUMNS = (
    "image_file", "image", "file_name", "filename", "image_path", "path", "file", "img", "jpg", "jpeg", "png", "webp",
)  # fmt: skip
CAPTION_COLUMNS = ("text", "caption", "txt", "prompt", "description", "title")
"""Tried in this order."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read; None where nothing is read.

    Attributes:
        caption: None if no column is one and `data.caption` stands in.
    """

    image: str
    caption: str | None
    reference: str | None
    mask: str | None
    group: str | None
    identity: str | None = None


def find_columns(names: Collection[str], data: DataSetConfig, source: str) -> Columns:
    """Choose columns by the config, or else by their names.

    Args:
        names: the columns that exist.
        source: name of the table, for messages.

    Raises:
        DataError: a column the config names does not exist, or none looks like a picture or a caption.
    """
    image = _column(names, data.image_column, IMAGE_COLUMNS, "image", source)
    if image is None:
        raise _unrecognised(names, "picture", "image", IMAGE_COLUMNS, source)
    caption = _column(names, data.caption_column, CAPTION_COLUMNS, "caption", source)
    if caption is None and data.caption is None:
        raise _unrecognised(names, "caption", "caption", CAPTION_COLUMNS, source)
    if data.reference == "group" and data.group_column is None:
        raise DataError(
            f'data.reference = "group" for {source} without data.group_column',
            expected=f"a column that names each picture's group; there are {listed(names)}",
            action="set data.group_column",
        )
    return Columns(
        image,
        caption,
        _column(names, data.reference_column, (), "reference", source),
        _column(names, data.mask_column, (), "mask", source),
        _column(names, data.group_column, (), "group", source),
        _column(names, data.identity_column, (), "identity", source),
    )


def listed(names: Collection[str]) -> str:
    """Names in words."""
    return ", ".join(names) or "none"


def nearest(name: str, names: Collection[str]) -> str:
    """A hint at the name that was probably meant, as the end of an action clause."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f", perhaps {close[0]}" if close else ""


def captions_in(value: object) -> tuple[str, ...]:
    """The captions that a cell holds: a text, or a list of texts, empty places left out; none if it is something else."""
    texts: list[Any] = [text for text in value if text is not None] if isinstance(value, list) else [value]
    return tuple(texts) if all(isinstance(text, str) for text in texts) else ()


def no_caption(where: str, data: DataSetConfig, columns: str) -> DataError:
    """A sample has no caption, and `data.caption` does not stand in."""
    return DataError(
        f"{where} has no caption",
        expected=f"text {columns}",
        action='write one, or set data.caption for pictures without one (data.caption = "" trains without text)',
    )


def _column(names: Collection[str], named: str | None, usual: Sequence[str], what: str, source: str) -> str | None:
    if named is None:
        return next((name for name in usual if name in names), None)
    if named not in names:
        raise DataError(
            f'data.{what}_column = "{named}", which {source} does not have',
            expected=f"one of its columns ({listed(names)})",
            action=f"correct data.{what}_column{nearest(named, names)}",
        )
    return named


def _unrecognised(names: Collection[str], what: str, key: str, usual: Sequence[str], source: str) -> DataError:
    default = ", or set data.caption" if key == "caption" else ""
    return DataError(
        f"no column of {source} ({listed(names)}) looks like a {what}",
        expected=f"a column named {', '.join(usual[:-1])} or {usual[-1]}",
        action=f"name it with data.{key}_column{default}",
    )
