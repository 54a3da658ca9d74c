"""What a process does that fills a store with made-up entries."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ipadapter_trainer.cache.sharing import Block, Share, fill_store
from ipadapter_trainer.cache.store import CacheStore

SHARD_SIZE = 8
RECIPE = {"made": "up"}


def entry(number: int) -> dict[str, Tensor]:
    return {"mean": torch.full((64, 64), float(number)), "sizes": torch.arange(6) + number}


def key(number: int) -> str:
    return f"{number:06x}:0"


def blocks(entries: int) -> list[Block[int]]:
    numbers = range(entries)
    return [
        Block({key(number): number for number in numbers[start : start + SHARD_SIZE]})
        for start in range(0, entries, SHARD_SIZE)
    ]


def fill(folder: Path, entries: int, seconds: float, log: Path) -> Share:
    """Each entry takes that many seconds, and its key goes to the log when it is made."""

    def make(missing: Mapping[str, int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for name, number in missing.items():
            time.sleep(seconds)
            with log.open("a") as file:
                file.write(f"{name}\n")
            yield name, entry(number)

    return fill_store(CacheStore(folder, "latents", RECIPE), blocks(entries), make, lambda _: None)
