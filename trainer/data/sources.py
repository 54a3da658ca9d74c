"""Opening the data set a config names, whatever it is."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ..config import Config, DataConfig, DataSetConfig
from .columns import nearest
from .folders import contents
from .hub import is_saved_dataset, load_hub, may_be_hub_name
from .records import DataError, Records, RowList, join, split_validation
from .shard_places import names_shards
from .shards import Shards, open_shards
from .tables import LISTS, load_folder, load_list

Source = Records | Shards
"""Samples that have numbers, or a stream."""

_TABULAR = (".parquet", ".arrow")  # files a Hugging Face dataset is made of
_BY_SUFFIX = {**LISTS, ".tar": "webdataset"} | dict.fromkeys(_TABULAR, "hf")


def open_source(data: DataConfig) -> Source:
    """Read what the data set consists of, but no pictures.

    Raises:
        DataError: it does not exist, or is not what the config says: file, row and column are named.
    """
    if not data.more:
        return _open(data)
    names: Counter[str] = Counter()
    parts = []
    for one in data.sets:
        name = Path(one.path).name
        names[name] += 1
        parts.append((name if names[name] == 1 else f"{name}#{names[name]}", _with_numbers(_open(one), one.path)))
    return join(parts)


def _open(data: DataSetConfig) -> Source:
    return _OPENERS[data.format if data.format != "auto" else _recognise(data.path)](data)


def open_sources(config: Config, *, holds_out: bool = False) -> tuple[Source, Records]:
    """(what is trained on, `validation.images` records that are not: none if the run neither validates nor samples).

    Args:
        holds_out: give those that a run would hold out if it validated.

    Raises:
        DataError: as `open_source`.
    """
    source, held_out = _open_sources(config, holds_out=holds_out)
    return source, held_out.told_apart()


def _open_sources(config: Config, *, holds_out: bool) -> tuple[Source, Records]:
    source = open_source(config.data)
    validation = config.validation
    if validation.every is None and validation.sample_every is None and not holds_out:
        return source, Records(RowList())
    if validation.path is None:
        return _hold_out(source, validation.images, config.train.seed)
    as_data = {name: getattr(config.data, name) for name in DataSetConfig.model_fields}
    kept = _open(DataSetConfig(**{**as_data, "path": validation.path, "format": "auto"}))
    if isinstance(kept, Records) and len(kept) <= validation.images:
        return source, kept
    return source, _hold_out(kept, validation.images, config.train.seed)[1]


def load_records(data: DataConfig) -> Records:
    """As `open_source`, for those who need samples by number.

    Raises:
        DataError: as there, or the data set is a stream.
    """
    return _with_numbers(open_source(data), data.path)


def _with_numbers(source: Source, path: str) -> Records:
    if isinstance(source, Shards):
        raise DataError(
            f"{path} is streamed, and its samples have no numbers",
            expected="a folder, a list file or a Hugging Face dataset here",
            action="name such a data set, or unpack the shards into a folder",
        )
    return source


def _hold_out(source: Source, images: int, seed: int) -> tuple[Source, Records]:
    return source.hold_out(images) if isinstance(source, Shards) else split_validation(source, images, seed)


def _list(list_format: str) -> Callable[[DataSetConfig], Records]:
    return lambda data: load_list(data, Path(data.path), list_format)


_OPENERS: dict[str, Callable[[DataSetConfig], Source]] = {
    "folder": load_folder,
    **{name: _list(name) for name in LISTS.values()},
    "hf": load_hub,
    "webdataset": open_shards,
}


def _recognise(path: str) -> str:
    place = Path(path)
    if place.is_dir():
        return _recognise_folder(place)
    if not place.exists() and names_shards(path):
        return "webdataset"
    known = _BY_SUFFIX.get(place.suffix.lower())
    if place.is_file() and known is None:
        raise DataError(
            f"data.path = {path!r}, a file of no known kind",
            expected=f"a file ending in {', '.join(_BY_SUFFIX)}",
            action="set data.format if it is one of these under another name",
        )
    if may_be_hub_name(path) and (known is None or (known == "hf" and path.count("/") > 1)):
        return "hf"
    if not place.exists():
        siblings = [sibling.name for sibling in place.parent.iterdir()] if place.parent.is_dir() else []
        raise DataError(
            f"data.path = {path!r}, which does not exist",
            expected="a folder of pictures, a list file, a Hugging Face dataset or WebDataset shards",
            action=f"correct data.path{nearest(place.name, siblings)}",
        )
    assert known is not None
    return known


def _recognise_folder(place: Path) -> str:
    if is_saved_dataset(place):
        return "hf"
    found = contents(place)
    if any(path.parent == place for path in found.ending_in([".tar"])):
        return "webdataset"
    return "hf" if found.ending_in(_TABULAR) else "folder"
