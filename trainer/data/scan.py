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
from .prepare import buckets_of
from .records import DataError, Records

T = TypeVar("T")
_THREADS_PER_CORE = 4  # they wait for the disk


def scan_buckets(
    records: Records, data: DataConfig, resolutions: Sequence[int], *, show: bool, processes: int = 1
) -> tuple[dict[Size, Sequence[int]], tuple[Skipped, ...]]:
    """Numbers of the records by bucket, and the pictures whose size cannot be read.

    A record is in one bucket for each resolution. Without buckets nothing is read, and all are in each.

    Args:
        show: draw a progress bar.
        processes: that all call this now, for the same records; each reads a part of the headers, if torch connects
            as many.

    Raises:
        DataError: no size can be read.
    """
    sizes = list(dict.fromkeys(size for side in resolutions for size in bucket_sizes(data, side)))
    if not data.buckets:
        return {size: range(len(records)) for size in sizes}, ()
    number_of = {size: number for number, size in enumerate(sizes)}

    def look(number: int) -> tuple[int, ...] | Skipped:
        record = records[number]
        try:
            return tuple(number_of[size] for size in buckets_of(record.image, data, resolutions))
        except BrokenPictureError as error:
            return Skipped(record.key, error.name, error.reason)

    first, step = _part(processes)
    part = range(first, len(records), step)
    with ThreadPoolExecutor(_THREADS_PER_CORE * (os.cpu_count() or 1)) as pool:
        looked_at = tqdm(pool.map(look, part), "picture sizes", len(part), unit="picture", disable=not show)
        found = _of_all(list(looked_at), len(records), step)
    members: dict[Size, list[int]] = {size: [] for size in sizes}
    skipped = []
    for number, buckets in enumerate(found):
        if isinstance(buckets, Skipped):
            skipped.append(buckets)
            continue
        for bucket in buckets:
            members[sizes[bucket]].append(number)
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
