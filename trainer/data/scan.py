"""The bucket of every record, from the headers of its picture."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch import distributed
from tqdm.auto import tqdm

from ..batch import Skipped
from ..config import DataConfig
from .buckets import bucket_sizes
from .pictures import BrokenPictureError, Size
from .prepare import bucket_of
from .records import DataError, Records

T = TypeVar("T")
_THREADS_PER_CORE = 4  # they wait for the disk


def scan_buckets(
    records: Records, data: DataConfig, *, show: bool, processes: int = 1
) -> tuple[dict[Size, Sequence[int]], tuple[Skipped, ...]]:
    """Numbers of the records by bucket, and the pictures whose size cannot be read.

    Without buckets nothing is read, and all records are in the one there is.

    Args:
        show: draw a progress bar.
        processes: that all call this now, for the same records; each reads a part of the headers, if torch connects
            as many.

    Raises:
        DataError: no size can be read.
    """
    sizes = bucket_sizes(data)
    if not data.buckets:
        return {sizes[0]: range(len(records))}, ()
    number_of = {size: number for number, size in enumerate(sizes)}

    def look(number: int) -> int | Skipped:
        record = records[number]
        try:
            return number_of[bucket_of(record.image, data)]
        except BrokenPictureError as error:
            return Skipped(record.key, error.name, error.reason)

    first, step = _part(processes)
    part = range(first, len(records), step)
    with ThreadPoolExecutor(_THREADS_PER_CORE * (os.cpu_count() or 1)) as pool:
        looked_at = tqdm(pool.map(look, part), "picture sizes", len(part), unit="picture", disable=not show)
        found = _of_all(list(looked_at), len(records), step)
    members: dict[Size, list[int]] = {size: [] for size in sizes}
    skipped = []
    for number, size in enumerate(found):
        if isinstance(size, Skipped):
            skipped.append(size)
        else:
            members[sizes[size]].append(number)
    if skipped and len(skipped) == len(records):
        raise DataError(
            f"none of {len(records)} pictures can be read, the first {skipped[0].path} ({skipped[0].reason})",
            expected="pictures",
            action="correct data.path or data.image_root",
        )
    return {size: numbers for size, numbers in members.items() if numbers}, tuple(skipped)


def _part(processes: int) -> tuple[int, int]:
    """(number of the first record to look at, step to the next)."""
    if processes > 1 and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _of_all(mine: list[T], total: int, step: int) -> list[T]:
    """What all found, in the order of the records."""
    if step == 1:
        return mine
    parts: list[list[T]] = [[]] * step
    distributed.all_gather_object(parts, mine)
    return [parts[number % step][number // step] for number in range(total)]
