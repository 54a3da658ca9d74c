"""What a process of its own does to read picture sizes together with others."""

from multiprocessing.connection import Connection
from pathlib import Path

from torch import distributed

from ipadapter_trainer.config import DataConfig
from ipadapter_trainer.data.records import Record, Records
from ipadapter_trainer.data.scan import scan_buckets
from ipadapter_trainer.data.sources import load_records


def scan_together(folder: Path, rank: int, processes: int, result: Connection) -> None:
    """Send (buckets, broken pictures, keys of the records that this process looked at)."""
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(folder / "store"), processes), rank=rank, world_size=processes
    )
    data = DataConfig(path=str(folder / "data"), resolution=32, bucket_step=8, buckets=True)
    records = load_records(data)
    looked_at: list[str] = []

    class Noted(Records):
        def __getitem__(self, index: int) -> Record:
            looked_at.append(records.key(index))
            return records[index]

    members, skipped = scan_buckets(Noted(records._rows), data, data.resolutions, show=False, processes=processes)
    result.send((members, skipped, looked_at))
    distributed.destroy_process_group()
