"""WebDataset shards: tar files of which each sample's members (1.jpg, 1.txt) follow one another."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ..batch import Skipped
from ..config import DataSetConfig
from .columns import CAPTION_COLUMNS, IMAGE_COLUMNS, captions_in, listed, nearest, no_caption
from .pictures import SUFFIXES, BrokenPictureError, BytesPicture, Picture, upright_size
from .records import DataError, Record, Records, RowList
from .shard_places import find_shards, open_shard
from .tar_members import BROKEN_SHARD, tar_members

_IMAGE_MEMBERS = tuple(dict.fromkeys((*(suffix[1:] for suffix in SUFFIXES), *IMAGE_COLUMNS)))
_META = "__"  # members webdataset adds


@dataclass(frozen=True)
class Shards:
    """A data set that is read from front to back.

    Attributes:
        urls: of the shards: paths, or `RemoteShard`.
        held_out: keys of records that are left out.
    """

    urls: tuple[str, ...]
    data: DataSetConfig
    held_out: frozenset[str] = frozenset()

    def read(self, urls: Sequence[str] | None = None) -> Iterator[Record | Skipped]:
        """Records of some shards (all if not given) in their order, and what cannot be used of them.

        A shard that is damaged ends where the damage is.

        Raises:
            DataError: a sample has no caption.
        """
        for url in self.urls if urls is None else urls:
            failures: list[str] = []
            for sample in _samples(url, failures):
                key = f"{self._names[url]}/{sample['__key__']}"
                try:
                    record = self._record(url, key, sample)
                    upright_size(record.image)
                except BrokenPictureError as error:
                    yield Skipped(key, error.name, error.reason)
                    continue
                if key not in self.held_out:
                    yield record
            yield from (Skipped(url, url, reason) for reason in failures[:1])

    @cached_property
    def _names(self) -> dict[str, str]:
        """What keys call each shard: its file name, with as many of its folders as tell it from others."""
        parts = {url: url.replace("\\", "/").split("/") for url in self.urls}
        for length in range(1, 1 + max(map(len, parts.values()))):
            names = {url: "/".join(of_url[-length:]) for url, of_url in parts.items()}
            if len(set(names.values())) == len(names):
                return names
        return {url: url for url in parts}

    def hold_out(self, images: int) -> tuple["Shards", Records]:
        """(the stream without its first records, these records)."""
        held = RowList()
        for record in self.read():
            if isinstance(record, Record):
                held.append(record)
            if len(held) == images:
                break
        return replace(self, held_out=frozenset(record.key for record in held)), Records(held)

    def _record(self, url: str, key: str, sample: Mapping[str, Any]) -> Record:
        data = self.data
        members = [name for name in sample if not name.startswith(_META)]

        def picture(member: str | None) -> Picture:
            if member not in members:
                what = f"no member {member}" if member else "no picture among the members"
                raise BrokenPictureError(f"{url}/{sample['__key__']}", f"{what} ({listed(members)})")
            return BytesPicture(f"{url}/{sample['__key__']}.{member}", sample[member])

        usual = next((name for name in _IMAGE_MEMBERS if name in members), None)
        image = picture(_member(data.image_column) or usual)
        reference = picture(_member(data.reference_column)) if data.reference_column else image
        mask = picture(_member(data.mask_column)) if data.mask_column else None
        caption, *others = self._captions(f"{key} of {url}", sample)
        return Record(key, caption, image, reference, mask, other_captions=tuple(others))

    def _captions(self, where: str, sample: Mapping[str, Any]) -> tuple[str, ...]:
        named = self.data.caption_column
        names = (named,) if named else CAPTION_COLUMNS
        member = next((name for name in names if _member(name) in sample), None)
        try:
            if member is not None:
                return (str(sample[str(_member(member))].decode("utf-8-sig")).strip(),)
            fields = json.loads(sample.get("json", b"{}"))
            found = next((fields[name] for name in names if isinstance(fields, dict) and name in fields), None)
            captions = captions_in(found) or captions_in(self.data.caption)
            for caption in captions:
                caption.encode()  # raises for half a character
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"the caption of {where} is no text ({error})",
                expected="UTF-8 text, or JSON",
                action="correct the shard",
            ) from error
        if not captions:
            raise no_caption(where, self.data, f"in a member .{' or .'.join(names)}, or under that name in .json")
        return captions


def open_shards(data: DataSetConfig) -> Shards:
    """Find the shards and look at the first sample.

    Raises:
        DataError: a shard is missing, or the members the config names are.
    """
    if data.reference in ("folder", "group"):
        raise DataError(
            f'data.reference = "{data.reference}" for shards, which are read as a stream',
            expected="self, or column with the reference as a member of each sample",
            action='pack the references into the shards and set data.reference = "column"',
        )
    if data.identity_column is not None:
        raise DataError(
            f'data.identity_column = "{data.identity_column}" for shards, which are read as a stream',
            expected="a list or a Hugging Face dataset: embeddings are read of tables",
            action="name one, or let encoder.face_model find the faces",
        )
    shards = Shards(find_shards(data), data)
    first = next(_samples(shards.urls[0], []), None)
    if first is None:
        raise DataError(f"no samples in {shards.urls[0]}", expected="a tar file of pictures", action="check the shard")
    members = [name for name in first if not name.startswith(_META)]
    for column in ("image_column", "reference_column", "mask_column"):
        named = _member(getattr(data, column))
        if named is not None and named not in members:
            raise DataError(
                f'data.{column} = "{named}", which the first sample of {shards.urls[0]} does not have',
                expected=f"one of its members ({listed(members)})",
                action=f"correct data.{column}{nearest(named, members)}",
            )
    return shards


def _member(column: str | None) -> str | None:
    return column.lower().lstrip(".") if column else None


def _samples(url: str, failures: list[str]) -> Iterator[dict[str, Any]]:
    """Members of each sample by name; why the shard ended early goes into failures, and its last sample is left out."""
    import webdataset

    def note(error: Exception) -> bool:
        if not isinstance(error, BROKEN_SHARD):
            raise error
        failures.append(f"{type(error).__name__}: {error.args[0] if error.args else ''}")
        return True

    known = 0
    try:
        with open_shard(url) as stream:
            for sample in webdataset.tariterators.group_by_keys(tar_members(url, stream), handler=note):
                if len(failures) == known:
                    yield sample
                known = len(failures)
    except BROKEN_SHARD as error:
        note(error)
