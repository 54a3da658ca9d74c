"""What a run says of its speed is true on a device that works behind the host's back."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ipadapter_trainer import loop
from ipadapter_trainer.batch import Batch
from ipadapter_trainer.config import Config
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.run import Run
from ipadapter_trainer.watch import observe
from support.pretend_device import PEAK_BYTES, Clock, pretend_device
from support.training import make_config, write_pictures

BACKWARD, READING, REPORT = 0.5, 0.125, 100.0  # seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Pictures, steps and reports take this clock's time, and nothing else takes any."""
    clock, original = Clock(BACKWARD), Run.batches

    def batches(run: Run, step: int) -> Iterator[Batch]:
        for batch in original(run, step):
            clock.pass_time(READING)
            yield batch

    monkeypatch.setattr(Run, "batches", batches)
    monkeypatch.setattr(loop, "Meter", partial(loop.Meter, clock=clock))
    monkeypatch.setattr(observe, "write_report", lambda run, *, is_live: clock.pass_time(REPORT))
    return clock


@pytest.fixture
def config(tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[[str], Path]) -> Config:
    """Logged at steps 2 and 4, looked at between."""
    return make_config(
        small_base_folder(),
        encoder_folder("clip"),
        write_pictures(tmp_path / "pictures", 6),
        tmp_path / "run",
        train={"steps": 4, "batch_size": 2, "log_every": 2, "trackers": []},
        validation={"every": 3, "images": 2, "timesteps": [500]},
    )


def test_speed_counts_the_wait_for_the_device_and_nothing_but_training(config: Config, clock: Clock) -> None:
    with pretend_device("cuda", clock):
        loop.train(config)
    first, second = (record for record in read_records(config.run) if record["kind"] == "train")
    behind = 2 * BACKWARD + READING  # the second picture is read while the device is at the first
    assert first["images_per_second"] == pytest.approx(4 / behind)
    assert first["data_wait"] == pytest.approx(2 * READING / behind)
    one_by_one = 2 * (BACKWARD + READING)  # with a validation between them, which waits for the device
    assert second["images_per_second"] == pytest.approx(4 / one_by_one)
    assert second["data_wait"] == pytest.approx(2 * READING / one_by_one)
    assert first["peak_bytes"] == second["peak_bytes"] == PEAK_BYTES


def test_a_host_that_is_its_own_device_says_nothing_of_memory(config: Config, clock: Clock) -> None:
    loop.train(config)
    assert all("peak_bytes" not in record for record in read_records(config.run))
