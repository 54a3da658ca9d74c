"""`Records`: the samples of a data set that has numbers for them, wherever they come from."""

import hashlib
import heapq
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
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
        caption: text prompt of the picture, of several the first.
        image: the target.
        reference: the image prompt; for data.reference = "group" the image itself, and `Records.reference` chooses.
        mask: gray, white where the loss counts.
        group: name of what it belongs to, "" if nothing says.
        other_captions: which may be drawn in place of the first.
    """

    key: str
    caption: str
    image: Picture
    reference: Picture
    mask: Picture | None = None
    group: str = ""
    other_captions: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """All, of which a sample has one."""
        return self.caption, *self.other_captions


class Rows(Protocol):
    """What a source of records offers; a row may be made only when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def key(self, index: int) -> str:
        """Of a record, without making it."""

    @property
    def version(self) -> str | None:
        """Commit of the hub's repository they come from; None if they come from elsewhere or nothing says."""


class RowList(list[Record]):
    """Rows that are all in memory."""

    version: str | None = None

    def key(self, index: int) -> str:
        return self[index].key


class Joined:
    """Rows of several data sets behind one another.

    Args:
        parts: of each data set, by a name that its keys begin with; of the first, none.
    """

    def __init__(self, parts: Sequence[tuple[str, Rows]]) -> None:
        self._parts = parts
        self.starts = [0, *accumulate(len(rows) for _, rows in parts)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> Record:
        part, row = self._find(index)
        return replace(self._parts[part][1][row], key=self.key(index))

    def key(self, index: int) -> str:
        part, row = self._find(index)
        name, rows = self._parts[part]
        return f"{name}{rows.key(row)}"

    @property
    def version(self) -> str | None:
        versions = [rows.version for _, rows in self._parts]
        return " and ".join(filter(None, versions)) if all(versions) else None

    def _find(self, index: int) -> tuple[int, int]:
        part = bisect_right(self.starts, index) - 1
        return part, index - self.starts[part]


class Records(Sequence[Record]):
    """Samples by number, or some of them.

    Args:
        rows: all of them.
        groups: name of each row's group if references come from the group, else None; None also for single rows.
        chosen: numbers of the rows that belong to it; all if not given.
        references: numbers of the rows that may be references of a group; the chosen ones if not given.
    """

    def __init__(
        self,
        rows: Rows,
        groups: Sequence[str | None] | None = None,
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
                group = groups[row]
                if group is not None:
                    self._members[group].append(row)

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

    @property
    def version(self) -> str | None:
        """As of `Rows`."""
        return self._rows.version

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
        group = self._groups[row]
        members = self._members[group] if group is not None else [row]
        if members == [row]:
            return self[index].reference
        other = members[int(torch.randint(len(members) - 1, (), generator=generator))]
        return self._rows[members[-1] if other == row else other].image

    def together(self, index: int, generator: torch.Generator, count: int) -> tuple[Picture, ...]:
        """The image prompt of a record and further ones of its group, each once before one comes again."""
        first = self.reference(index, generator)
        row = self._chosen[index]
        group = None if self._groups is None else self._groups[row]
        members = [other for other in self._members.get(group or "", []) if other != row]
        order = torch.randperm(len(members), generator=generator).tolist()
        others = [self._rows[members[number]].image for number in order]
        different = [first, *(picture for picture in others if picture.name != first.name)]
        return tuple(different[number % len(different)] for number in range(count))

    def sets(self) -> list[Sequence[int]]:
        """Numbers of the records of each data set; of one, all."""
        if not isinstance(self._rows, Joined):
            return [range(len(self))]
        places = torch.bucketize(torch.tensor(self._chosen), torch.tensor(self._rows.starts[1:]), right=True)
        return [torch.nonzero(places == part).flatten().tolist() for part in range(len(self._rows.starts) - 1)]


def join(parts: Sequence[tuple[str, Records]]) -> Records:
    """Whole data sets as one, under names."""
    rows = Joined([(f"{name}:" if number else "", records._rows) for number, (name, records) in enumerate(parts)])
    if all(records._groups is None for _, records in parts):
        return Records(rows)
    groups: list[str | None] = []
    for number, (_, records) in enumerate(parts):
        of_part = records._groups if records._groups is not None else [None] * len(records)
        groups += [None if group is None else f"{number}/{group}" for group in of_part]
    return Records(rows, groups)


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
    text = f"{seed}/{key}".encode(errors="surrogatepass")  # a name of a file need not be UTF-8
    return hashlib.blake2b(text, digest_size=16).digest()
