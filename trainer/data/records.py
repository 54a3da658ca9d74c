"""`Records`: the samples of a data set that has numbers for them, wherever they come from."""

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import torch

from ipadapter_core.errors import IPAdapterError

from .pictures import Picture


class DataError(IPAdapterError):
    """A data set that cannot be read as the config says."""


@dataclass(frozen=True)
class Record:
    """One sample before its pictures are read.

    Attributes:
        key: unique in the data set, and the same every time it is read.
        caption: text prompt of the picture.
        image: the target.
        reference: the image prompt; for data.reference = "group" the image itself, and `Records.reference` chooses.
        mask: gray, white where the loss counts.
        group: name of what it belongs to, "" if nothing says.
    """

    key: str
    caption: str
    image: Picture
    reference: Picture
    mask: Picture | None = None
    group: str = ""


class Rows(Protocol):
    """What a source of records offers; a row may be made only when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def key(self, index: int) -> str:
        """Of a record, without making it."""


class RowList(list[Record]):
    """Rows that are all in memory."""

    def key(self, index: int) -> str:
        return self[index].key


class Records(Sequence[Record]):
    """Samples by number, or some of them.

    Args:
        rows: all of them.
        groups: name of each row's group if references come from the group, else None.
        chosen: numbers of the rows that belong to it; all if not given.
        references: numbers of the rows that may be references of a group; the chosen ones if not given.
    """

    def __init__(
        self,
        rows: Rows,
        groups: Sequence[str] | None = None,
        chosen: Sequence[int] | None = None,
        references: Sequence[int] | None = None,
    ) -> None:
        self._rows = rows
        self._groups = groups
        self._chosen = range(len(rows)) if chosen is None else chosen
        self._references = self._chosen if references is None else references
        self._members: dict[str, list[int]] = defaultdict(list)
        if groups is not None:
            for row in self._references:
                self._members[groups[row]].append(row)

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> "Records": ...

    def __getitem__(self, index: int | slice) -> "Record | Records":
        if isinstance(index, slice):
            return self.subset(range(len(self))[index])
        return self._rows[self._chosen[index]]

    def key(self, index: int) -> str:
        """Of a record, without making it."""
        return self._rows.key(self._chosen[index])

    def subset(self, indices: Sequence[int], *, keep_references: bool = False) -> "Records":
        """Some of them. References of a group then come from among these only, or else still from all."""
        chosen = [self._chosen[index] for index in indices]
        return Records(self._rows, self._groups, chosen, self._references if keep_references else None)

    def told_apart(self) -> "Records":
        """For validation, where another record's reference is the wrong one: each is its own where all are one group.

        Any member of that group says as much of a picture as any other, so that right and wrong would be alike.
        """
        groups = self._groups
        if groups is None or len({groups[row] for row in self._chosen}) > 1:
            return self
        return Records(self._rows, None, self._chosen)

    def reference(self, index: int, generator: torch.Generator) -> Picture:
        """The image prompt of a record: of a group another member at random, the picture itself if it is alone."""
        if self._groups is None:
            return self[index].reference
        row = self._chosen[index]
        members = self._members[self._groups[row]]
        if members == [row]:
            return self[index].reference
        other = members[int(torch.randint(len(members) - 1, (), generator=generator))]
        return self._rows[members[-1] if other == row else other].image


def split_validation(records: Records, images: int, seed: int) -> tuple[Records, Records]:
    """(records to train on, records kept out).

    Which are kept out follows from their keys, so that adding records to the data moves few of them.

    Raises:
        DataError: nothing would be left to train on.
    """
    if images >= len(records):
        raise DataError(
            f"{len(records)} pictures, of which {images} are to be kept out for validation",
            expected="pictures left to train on",
            action="lower validation.images or give validation.path",
        )
    held = set(heapq.nsmallest(images, range(len(records)), key=lambda index: key_hash(records.key(index), seed)))
    trained = [index for index in range(len(records)) if index not in held]
    return records.subset(trained), records.subset(sorted(held), keep_references=True)


def key_hash(key: str, seed: int) -> bytes:
    """Where a key stands in the order in which records are kept out."""
    return hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=16).digest()
