"""Between two log lines nothing waits for the device: no number is read off it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support.training import make_config, write_pictures
from trainer.run import open_run

READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class CountReads(TorchDispatchMode):
    """Counts what makes the host wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in READS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_a_step_reads_no_number_off_the_device(
    tmp_path: Path, base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path], layout: str
) -> None:
    config = make_config(
        base_folder(layout),
        encoder_folder("clip"),
        write_pictures(tmp_path / "pictures"),
        tmp_path / "run",
        optimizer={"ema_decay": 0.9},
        objective={"min_snr_gamma": 5.0},
    )
    run = open_run(config)
    batches = run.batches(0)
    next(batches)
    batch = next(batches)
    with CountReads() as reads:
        loss = run.objective.loss(run.adapter, batch.to(run.accelerator.device))
        run.accelerator.backward(loss)
        run.accelerator.clip_grad_norm_(run.network.trained_parameters(), 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        assert run.ema is not None
        run.ema.step(run.network.trained_parameters())
    assert reads.count == 0
    with CountReads() as reads:
        loss.item()
    assert reads.count == 1
