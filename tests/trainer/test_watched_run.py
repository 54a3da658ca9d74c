"""What a person who watches a run gets: a live report, pictures in the tracker, and best weights that know their step."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ipadapter_core.file.container import read_tensors
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import best_so_far, read_records
from ipadapter_trainer.state import BEST, BEST_STEP
from ipadapter_trainer.watch import observe
from ipadapter_trainer.watch.report import REPORT_FILE
from support.training import make_config, write_pictures


def test_a_run_can_be_watched(
    tmp_path: Path,
    small_base_folder: Callable[..., Path],
    encoder_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages: list[str] = []

    def kept(run: Path, *, is_live: bool) -> None:
        pages.append(write_report(run, is_live=is_live).read_text(encoding="utf-8"))

    write_report = observe.write_report
    monkeypatch.setattr(observe, "write_report", kept)
    validation = {"every": 2, "images": 2, "timesteps": [500], "sample_every": 4, "samples": 1, "sampler_steps": 1}
    config = make_config(
        small_base_folder(),
        encoder_folder(),
        write_pictures(tmp_path / "pictures", 6),
        tmp_path / "run",
        validation=validation,
        train={"steps": 4, "batch_size": 2, "trackers": ["tensorboard"]},
    )
    train(config)
    *during, last = ("http-equiv" in page for page in pages)
    assert len(during) == 3  # steps 0, 2 and 4
    assert all(during)
    assert not last
    assert (config.run / REPORT_FILE).read_text(encoding="utf-8") == pages[-1]

    events = EventAccumulator(str(config.run / "run"), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("samples")] == [0, 4]

    best = best_so_far(read_records(config.run), config.validation.best)
    assert best is not None
    assert read_tensors(config.run / BEST).metadata[BEST_STEP] == str(best.step)
