"""How much faster our trainer is than a plain loop, and how much less memory it needs: same model, same data, same
batch, in one run (`--small`: toy sizes, to see that it works).

`--kind` says what is trained: a UNet's adapter against the official tutorial's loop, a FaceID adapter with its LoRA
against the tutorial's for faces, or one for FLUX.1, SD3.5, Z-Image, Qwen-Image or Anima against a loop written with diffusers
alone (`throughput_kinds.py`).

Time: the processor's seconds for a step, median. There is one thread and no data worker, so on an idle machine these are
the seconds that pass; whatever else the machine does hardly changes them, and the loops take turns. On a CPU without 16-bit arithmetic all compute in float32, for its emulation is all that would be measured there;
16-bit frozen weights, which a plain loop casts again in every use, then count for nothing. `operations` tells how
much of the work encoding is here; docs/scaling.md has the same of full-size models.

Memory: peak bytes of all tensors alive in two steps (see `tensor_bytes`), which is what a GPU has to hold, in the
precision both are meant for: float32 weights under autocast to bf16, against bf16 weights. The count is the same on
every machine. Models that our cached run sends off the device are not in it.
"""

import argparse
import contextlib
import json
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import throughput_worker as worker
import torch
from tensor_bytes import Quick16Bit
from throughput_kinds import KINDS
from throughput_worker import PLAIN

from ipadapter_trainer.cache.fill import fill
from ipadapter_trainer.data.sources import open_sources
from ipadapter_trainer.models.loading import load_base
from ipadapter_trainer.readers.opening import open_reader

VARIANTS = (PLAIN, "uncached", "cached")
ROUNDS, MEMORY_STEPS = 2, 2
MEMORY_PRECISION = "bf16"
_context = multiprocessing.get_context("forkserver")  # imports once, and starts no thread before it forks


class Loop:
    """A process that runs `serve`, a function of the worker module."""

    def __init__(self, serve: Callable[..., None], variants: tuple[str, ...], *arguments: object) -> None:
        self._connection, other = _context.Pipe()
        self._process = _context.Process(target=serve, args=(other, variants, *arguments))
        self._process.start()
        other.close()

    def ask(self, request: object) -> float:
        self._connection.send(request)
        answer: float = self._connection.recv()
        return answer

    def end(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._connection.send(None)
        self._process.join()


@contextmanager
def running(loop: Loop) -> Iterator[Loop]:
    try:
        yield loop
    finally:
        loop.end()


def measure(folder: Path, name: str, *, is_small: bool) -> dict[str, Any]:
    kind, rounds = KINDS[name], 1 if is_small else ROUNDS
    shape, size = kind.small if is_small else kind.sizes
    settings = {
        **kind.write(folder, shape),
        "kind": name,
        "size": size,
        "cache": str(folder / "cache"),
        "output": str(folder / "run"),
        "resolution": shape.resolution,
        "batch_size": shape.batch_size,
        "threads": torch.get_num_threads(),
    }
    is_native = has_16_bit_arithmetic()
    computed = "bf16" if is_native else "fp32"
    seconds, operations = measure_time(settings, computed, rounds)
    typical = {variant: statistics.median(values) for variant, values in seconds.items()}
    peaks = measure_memory(settings, MEMORY_PRECISION)
    training, encoding = operations["cached"], operations["uncached"] - operations["cached"]

    def named(values: dict[str, Any]) -> dict[str, Any]:
        return {kind.plain if variant == PLAIN else variant: value for variant, value in values.items()}

    return {
        "kind": name,
        "speed_ratio": round(typical[PLAIN] / typical["cached"], 3),
        "speed_ratio_uncached": round(typical[PLAIN] / typical["uncached"], 3),
        "memory_ratio": round(peaks[PLAIN] / peaks["cached"], 3),
        "memory_ratio_uncached": round(peaks[PLAIN] / peaks["uncached"], 3),
        "images_per_second": named({each: round(shape.batch_size / value, 4) for each, value in typical.items()}),
        "peak_bytes": named(peaks),
        "seconds": named({each: [round(value, 3) for value in values] for each, values in seconds.items()}),
        "precision": {
            "time": computed,
            "memory": MEMORY_PRECISION,
            "note": "this CPU has 16-bit arithmetic" if is_native else "this CPU only emulates 16-bit arithmetic",
        },
        "settings": {
            "model": kind.describe(shape),
            "adapter": kind.adapter(size),
            "resolution": shape.resolution,
            "picture": shape.picture,
            "batch_size": shape.batch_size,
            "threads": settings["threads"],
            "warm_up_steps": 1,
            "steps": rounds,
            "memory_steps": MEMORY_STEPS,
            "workers": 0,
        },
        "operations": {
            "training": training // shape.batch_size,
            "encoding": encoding // shape.batch_size,
            "encoding_ratio": round(encoding / training, 3),
        },
    }


def measure_time(
    settings: dict[str, Any], precision: str, rounds: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each step, and the operations of the one before them, which warms up."""
    fill_cache(settings, precision)
    with (
        running(Loop(worker.time_steps, (PLAIN,), settings, precision)) as plain,
        running(Loop(worker.time_steps, ("cached", "uncached"), settings, precision)) as ours,
    ):
        loops = {PLAIN: plain, "uncached": ours, "cached": ours}
        operations = {variant: int(loops[variant].ask((variant, True))) for variant in VARIANTS}
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for _ in range(rounds):
            for variant in VARIANTS:
                seconds[variant].append(loops[variant].ask((variant, False)))
    return seconds, operations


def measure_memory(settings: dict[str, Any], precision: str) -> dict[str, int]:
    fill_cache(settings, precision)
    peaks = {}
    for variant in VARIANTS:
        with running(Loop(worker.count_bytes, (variant,), settings, precision)) as loop:
            peaks[variant] = int(loop.ask(MEMORY_STEPS))
    return peaks


def fill_cache(settings: dict[str, Any], precision: str) -> None:
    config = worker.make_config(settings, precision, is_cached=True)
    cpu = torch.device("cpu")
    base = load_base(config.base, cpu, only=frozenset({"vae", "text"}))
    reader = open_reader(config, cpu)
    with Quick16Bit():
        fill(config, base, reader, open_sources(config), batch_size=settings["batch_size"])


def has_16_bit_arithmetic() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="toy sizes, to see that it works")
    parser.add_argument("--kind", choices=KINDS, default="unet", help="what is trained (default: %(default)s)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    _context.set_forkserver_preload(["throughput_worker"])
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        result = measure(Path(folder), asked.kind, is_small=asked.small)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
