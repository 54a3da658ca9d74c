"""Records from Hugging Face datasets: a folder that `save_to_disk` wrote, a repository, or its files."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ipadapter_core.errors import IPAdapterError

from ..config import DataSetConfig
from ..hub import HUB_ERRORS, HubPlace
from ..words import first_line
from .columns import Columns, captions_in, find_columns, listed, nearest, no_caption
from .identities import WithIdentity
from .pictures import BrokenPictureError, FilePicture, Picture, is_inside
from .records import DataError, Record, Records

_SAVED_MARKS = ("dataset_info.json", "dataset_dict.json", "state.json")
"""Files of a folder that `save_to_disk` wrote."""
_CARDS = ("README.md", ".huggingface.yaml")
_BATCH = 10_000
_EXPECTED = (
    "a folder that save_to_disk wrote, or a dataset of the hub (owner/name, with /folder and @revision if needed)"
)


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((path / mark).is_file() for mark in _SAVED_MARKS)


def may_be_hub_name(path: str) -> bool:
    """Whether a path that does not exist could be one of the hub, and not a mistake in one of this machine."""
    place = HubPlace.of(path)
    return place is not None and not Path(place.repository).parent.is_dir()


def load_hub(data: DataSetConfig) -> Records:
    """Open a dataset without reading its pictures.

    Raises:
        DataError: it cannot be opened or is empty, or a split, column or caption is missing.
    """
    place = HubPlace.of(data.path)
    is_pinned = place is not None and (place.inside or place.revision)
    path = _fetch(place) if place is not None and is_pinned else Path(data.path)
    table = _open(data, path)
    columns = find_columns(table.column_names, data, data.path)
    rows = _HubRows(table, columns, data, (place.unpinned, place.commit(path)) if place and is_pinned else None)
    rows.check_captions()
    return Records(rows, rows.groups() if data.reference == "group" else None)


@dataclass(frozen=True)
class HubPicture:
    """A cell of a dataset; nothing is read before it is asked for."""

    column: Any  # a datasets.Dataset of one column
    row: int
    name: str
    root: Path
    roots: tuple[Path, ...]
    fingerprint: str

    @property
    def identity(self) -> str:
        return f"{self.fingerprint}|{self.name}"

    def read(self) -> bytes:
        (name,) = self.column.column_names
        value = self.column[self.row][name]
        if isinstance(value, bytes):
            return value
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, value)
        if content is not None:
            return bytes(content)
        if isinstance(path, str):
            file = self.root / path
            if self.roots and not any(is_inside(root, file) for root in self.roots):
                raise BrokenPictureError(
                    self.name, f"{path!r} is outside the data set; data.allow_outside would read it"
                )
            return FilePicture(file).read()
        raise BrokenPictureError(self.name, f"an empty cell, or one that is no picture ({type(value).__name__})")

    def open(self) -> BinaryIO:
        return io.BytesIO(self.read())


class _HubRows:
    """Args: origin: where on the hub it is and at which commit; None for another place, or if nothing says."""

    def __init__(
        self, table: Any, columns: Columns, data: DataSetConfig, origin: tuple[str, str | None] | None = None
    ) -> None:
        from datasets import Image

        self._data = data
        self._name, self.version = origin or (data.path, None)
        self._columns = columns
        self._size = len(table)
        self._fingerprint = f"{self._name}|{data.split}|{self.version or table._fingerprint}"
        self._root = Path(data.image_root or ".")
        self._roots = _roots(data)
        names = (columns.image, columns.caption, columns.reference, columns.mask, columns.group, columns.identity)
        self._views = {}
        for name in filter(None, names):
            view = table.select_columns([name])
            self._views[name] = (
                view.cast_column(name, Image(decode=False)) if isinstance(view.features[name], Image) else view
            )

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Record:
        columns = self._columns
        image = self._picture(columns.image, index)
        reference = self._picture(columns.reference, index) if columns.reference else image
        if columns.identity is not None:
            is_itself = reference is image
            reference = WithIdentity(reference, self._value(columns.identity, index))
            image = reference if is_itself else image  # of a group it is another's reference
        captions = self._captions(index)
        return Record(
            self.key(index),
            captions[0],
            image,
            reference,
            self._picture(columns.mask, index) if columns.mask else None,
            str(self._value(columns.group, index)) if columns.group else "",
            captions[1:],
        )

    def key(self, index: int) -> str:
        return str(index)

    def groups(self) -> list[str]:
        """Raises DataError for the first row without one, as a list's."""
        name = self._columns.group
        values = [value for batch in self._views[name].iter(_BATCH) for value in batch[name]] if name else []
        for index, value in enumerate(values):
            if value in (None, ""):
                raise DataError(
                    f"row {index} of {self._data.path} has no {name}",
                    expected="the name of a group in every row",
                    action="complete the row or remove it",
                )
        return [str(value) for value in values]

    def check_captions(self) -> None:
        """Raises DataError for the first row without a caption."""
        name = self._columns.caption
        if name is None or self._data.caption is not None:
            return
        captions = (value for batch in self._views[name].iter(_BATCH) for value in batch[name])
        for index, value in enumerate(captions):
            if not captions_in(value):
                raise no_caption(f"row {index} of {self._data.path}", self._data, f"in column {name}")

    def _captions(self, index: int) -> tuple[str, ...]:
        name = self._columns.caption
        return captions_in(self._value(name, index) if name else None) or (self._data.caption or "",)

    def _value(self, name: str, index: int) -> Any:
        return self._views[name][index][name]

    def _picture(self, name: str, index: int) -> Picture:
        picture: Picture = HubPicture(
            self._views[name], index, f"{self._name}[{index}].{name}", self._root, self._roots, self._fingerprint
        )
        return picture


def _roots(data: DataSetConfig) -> tuple[Path, ...]:
    """Folders whose files a table may name: where the data set is, and where datasets put what it fetched; () for any."""
    from datasets import config
    from huggingface_hub import constants

    if data.allow_outside:
        return ()
    place = Path(data.path)
    own = place.parent if place.is_file() else place
    caches = (config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)
    return (Path(data.image_root or "."), own, *map(Path, caches))


def _fetch(place: HubPlace) -> Path:
    """The folder or file in the hub's cache."""
    try:
        return place.snapshot(None, "dataset")
    except HUB_ERRORS as error:
        found, action = place.explain(error, "data.path", "dataset")
        raise DataError(found, expected=_EXPECTED, action=action) from error


def _open(data: DataSetConfig, path: Path) -> Any:
    """The split as a datasets.Dataset.

    Args:
        path: where it lies, if it is not on the hub.
    """
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    if data.reference == "folder":
        raise DataError(
            'data.reference = "folder" for a Hugging Face dataset, whose pictures have no names',
            expected="self, column or group",
            action='use data.reference = "column"',
        )
    if path.exists() and not is_saved_dataset(path):
        _refuse_pattern(path)
        if path.is_dir():
            _refuse_files_elsewhere(path)
    try:
        if is_saved_dataset(path):
            found = load_from_disk(str(path))
            return _split(found, data) if isinstance(found, dict) else found
        if path.is_file():
            return load_dataset(path.suffix.lstrip("."), data_files=str(path), split="train")
        return load_dataset(str(path) if path.exists() else data.path, split=data.split)
    except IPAdapterError:
        raise
    except (OSError, ValueError, LookupError, DatasetsError) as error:  # an empty one: IndexError
        raise DataError(
            f"the dataset {data.path} (split {data.split}) cannot be opened ({first_line(error).rstrip('.')})",
            expected=_EXPECTED,
            action="correct data.path or data.split; without a network, download it elsewhere, save_to_disk and copy it",
        ) from error


def _refuse_pattern(path: Path) -> None:
    """datasets would read other files than this one, or ask a network for it."""
    if re.search(r"[*?[]|::|://", str(path)):
        raise DataError(
            f"{path} has characters that datasets takes for a pattern or an address",
            expected="a name without *, ?, [, :: and ://",
            action="rename the folder or file",
        )


def _refuse_files_elsewhere(folder: Path) -> None:
    """A card may name the files of its data set: those of its folder, not what lies elsewhere or in a network."""
    for name in _CARDS:
        card = folder / name
        if not card.is_file():
            continue
        outside = [text for text in _named_files(card) if re.search(r"^[/\\~]|^\w:|\.\.|::|://", text)]
        if outside:
            raise DataError(
                f"{card} names {outside[0]!r}, outside the folder",
                expected="data_files of the folder itself",
                action=f"correct or delete {name}, or name in data.path what you want to train on",
            )


def _named_files(card: Path) -> list[str]:
    """All texts in the `configs` of a card."""
    import yaml

    text = card.read_text(encoding="utf-8-sig", errors="replace")
    if card.suffix == ".md":
        found = re.match(r"\s*---\s*\n(.*?)\n---", text, re.DOTALL)
        text = found.group(1) if found else ""
    try:
        values = [yaml.safe_load(text)]
    except yaml.YAMLError:  # which datasets says better
        return []
    values = [values[0].get("configs")] if isinstance(values[0], dict) else []
    texts = []
    while values:
        value = values.pop()
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):
            values += value
    return texts


def _split(found: Any, data: DataSetConfig) -> Any:
    if data.split not in found:
        raise DataError(
            f'data.split = "{data.split}", which {data.path} does not have',
            expected=f"one of its splits ({listed(found)})",
            action=f"correct data.split{nearest(data.split, found)}",
        )
    return found[data.split]
