"""The training loops of `trainer_throughput.py`, in processes of their own: they take steps when told to, and say how
long those took or how many bytes they needed."""

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests"), str(ROOT)]

import torch  # noqa: E402
from official_loop import AdapterSize, Settings  # noqa: E402
from tensor_bytes import TensorBytes  # noqa: E402
from throughput_kinds import KINDS  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from ipadapter_trainer.config import Config  # noqa: E402
from ipadapter_trainer.config_file import parse_config  # noqa: E402
from ipadapter_trainer.data.sample import Stores  # noqa: E402
from ipadapter_trainer.run import Run, open_run  # noqa: E402

Step = Callable[[], object]
PLAIN = "plain"


def plain(settings: dict[str, Any], precision: str) -> Step:
    """`precision` is that of our config; accelerate calls float32 "no"."""
    own = Settings(
        *(Path(settings.get(name, "")) for name in ("base", "encoder", "data")),
        resolution=settings["resolution"],
        batch_size=settings["batch_size"],
        precision={"fp32": "no"}.get(precision, precision),
    )
    size: AdapterSize = settings["size"]
    step: Step = KINDS[settings["kind"]].loop(own, size).step
    return step


def make_config(settings: dict[str, Any], precision: str, *, is_cached: bool) -> Config:
    encoder: dict[str, str] = {}
    parts = ["latents", "text"]
    if "encoder" in settings:  # else references come ready with the data
        encoder = {
            "model": str(settings["encoder"]),
            "precision": precision,
            "feature": KINDS[settings["kind"]].feature,
        }
        parts.append("features")
    return parse_config(
        {
            "base": {"model": str(settings["base"]), "precision": precision},
            "encoder": encoder,
            "adapter": KINDS[settings["kind"]].adapter(settings["size"]),
            "data": {"path": str(settings["data"]), "resolution": settings["resolution"], "workers": 0},
            "cache": {"path": settings["cache"], "parts": parts} if is_cached else {},
            "train": {
                "output": settings["output"],
                "steps": 1000,
                "batch_size": settings["batch_size"],
                "trackers": [],
            },
        },
        "bench",
    )


def step_of(run: Run) -> Step:
    batches = run.batches(0)
    return lambda: run.step(batches)


def time_steps(connection: Connection, variants: tuple[str, ...], settings: dict[str, Any], precision: str) -> None:
    """Answer (name of a variant, whether to count) by the processor's seconds, or the operations, of its next step.

    Ours share one run, cached and not.
    """
    with _quiet(settings):
        if PLAIN in variants:
            steps = {PLAIN: plain(settings, precision)}
        else:
            run = open_run(make_config(settings, precision, is_cached=True))
            bare = replace(run, config=make_config(settings, precision, is_cached=False), stores=Stores())
            steps = {"cached": step_of(run), "uncached": step_of(bare)}
        assert steps.keys() == set(variants)
        while (asked := connection.recv()) is not None:
            name, counts = asked
            if counts:
                with FlopCounterMode(display=False) as counter:
                    steps[name]()
                connection.send(counter.get_total_flops())
                continue
            start = time.process_time()
            steps[name]()
            connection.send(time.process_time() - start)


def count_bytes(connection: Connection, variants: tuple[str, ...], settings: dict[str, Any], precision: str) -> None:
    """Answer a number of steps by the most bytes held in them."""
    (variant,) = variants
    with _quiet(settings):
        elsewhere = []
        if variant == PLAIN:
            step = plain(settings, precision)
        else:
            run = open_run(make_config(settings, precision, is_cached=variant == "cached"))
            run.release_encoders()
            if variant == "cached":  # it has sent them to the CPU, which is the device here
                elsewhere = [run.base.vae, *run.reader.models.values()]
            step = step_of(run)
        while (steps := connection.recv()) is not None:
            with TensorBytes(elsewhere) as tensors:
                for _ in range(steps):
                    step()
            connection.send(tensors.peak)


@contextlib.contextmanager
def _quiet(settings: dict[str, Any]) -> Any:
    torch.set_num_threads(settings["threads"])
    with contextlib.redirect_stdout(sys.stderr):
        yield
