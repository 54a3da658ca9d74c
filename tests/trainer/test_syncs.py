"""Between two log lines nothing waits for the device: no number is read off it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ipadapter_trainer.batch import Batch
from ipadapter_trainer.loop import train
from ipadapter_trainer.run import Run
from support.training import make_config, write_pictures

OPERATIONS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
METHODS = {torch.Tensor.tolist, torch.Tensor.cpu, torch.Tensor.numpy}  # no operation where the device is the host
NEVER = 1000
OBJECTIVES: dict[str, dict[str, Any]] = {
    "sd15": {"min_snr_gamma": 5.0},
    "sdxl": {"debiased": True, "huber_c": 0.1, "huber_schedule": "exponential", "input_perturbation": 0.1},
}


class Reads(contextlib.ExitStack):
    """Counts what makes the host wait for a value, but for what making a batch does: that lies on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.is_making_a_batch = False

    def __enter__(self) -> "Reads":
        self.enter_context(_Operations(self))
        self.enter_context(_Methods(self))
        return self

    def note(self, is_read: bool) -> None:
        self.count += is_read and not self.is_making_a_batch


class _Operations(TorchDispatchMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads.note(func in OPERATIONS)
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads.note(func in METHODS)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def read(
    tmp_path: Path,
    small_base_folder: Callable[..., Path],
    encoder_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., int]:
    """How many numbers a whole `train` reads."""
    pictures, original = write_pictures(tmp_path / "pictures"), Run.batches

    def count(layout: str, steps: int, log_every: int) -> int:
        with Reads() as reads:

            def batches(run: Run, step: int) -> Iterator[Batch]:
                made = original(run, step)
                while True:
                    reads.is_making_a_batch = True
                    batch = next(made)
                    reads.is_making_a_batch = False
                    yield batch

            monkeypatch.setattr(Run, "batches", batches)
            train(
                make_config(
                    small_base_folder(layout),
                    encoder_folder("clip"),
                    pictures,
                    tmp_path / f"{layout} {steps} {log_every}",
                    train={"steps": steps, "log_every": log_every},
                    optimizer={"ema_decay": 0.9},
                    objective=OBJECTIVES[layout],
                    checkpoint={"every": NEVER},
                )
            )
        return reads.count

    return count


@pytest.mark.parametrize("layout", ["sd15", pytest.param("sdxl", marks=pytest.mark.long)])
def test_a_step_reads_no_number_off_the_device(read: Callable[..., int], layout: str) -> None:
    of_one_step = read(layout, steps=1, log_every=NEVER)  # the last step is logged and saved
    assert read(layout, steps=5, log_every=NEVER) == of_one_step
    assert read(layout, steps=5, log_every=1) == of_one_step + 4, "each further log line reads once"
