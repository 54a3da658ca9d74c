"""The bucket of every record, from the headers of its picture."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm.auto import tqdm

from ..batch import Skipped
from ..config import DataConfig
from .buckets import bucket_sizes
from .pictures import BrokenPictureError, Size
from .prepare import bucket_of
from .records import DataError, Records

_THREADS_PER_CORE = 4  # they wait for the disk


def scan_buckets(
    records: Records, data: DataConfig, *, show: bool
) -> tuple[dict[Size, Sequence[int]], tuple[Skipped, ...]]:
    """Numbers of the records by bucket, and the pictures whose size cannot be read.

    Without buckets nothing is read, and all records are in the one there is.

    Args:
        show: draw a progress bar.

    Raises:
        DataError: no size can be read.
    """
    sizes = bucket_sizes(data)
    if not data.buckets:
        return {sizes[0]: range(len(records))}, ()

    def look(number: int) -> Size | Skipped:
        record = records[number]
        try:
            return bucket_of(record.image, data)
        except BrokenPictureError as error:
            return Skipped(record.key, error.name, error.reason)

    members: dict[Size, list[int]] = {size: [] for size in sizes}
    skipped = []
    with ThreadPoolExecutor(_THREADS_PER_CORE * (os.cpu_count() or 1)) as pool:
        found = pool.map(look, range(len(records)))
        for number, size in enumerate(tqdm(found, "picture sizes", len(records), unit="picture", disable=not show)):
            if isinstance(size, Skipped):
                skipped.append(size)
            else:
                members[size].append(number)
    if skipped and len(skipped) == len(records):
        raise DataError(
            f"none of {len(records)} pictures can be read, the first {skipped[0].path} ({skipped[0].reason})",
            expected="pictures",
            action="correct data.path or data.image_root",
        )
    return {size: numbers for size, numbers in members.items() if numbers}, tuple(skipped)
