"""metrics.jsonl: every line whole, no step twice after a resume, and the best step by each rule."""

import json

import pytest

from ipadapter_trainer.metrics_log import Best, MetricsLog, best_so_far, read_records


def _steps(run):
    return [record["step"] for record in read_records(run)]


def test_a_line_is_on_disk_when_write_returns(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(10, "train", {"loss": 0.5, "learning_rate": 1e-4})
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert {"step": 10, "kind": "train", "loss": 0.5}.items() <= json.loads(line).items()
    assert read_records(tmp_path) == log.records


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path)
    for step in (10, 20, 30):
        log.write(step, "train", {"loss": 1.0})
    resumed = MetricsLog(tmp_path, start_step=20)
    assert _steps(tmp_path) == [10, 20]
    resumed.write(30, "train", {"loss": 2.0})
    assert _steps(tmp_path) == [10, 20, 30]
    assert [record["step"] for record in resumed.records] == [10, 20, 30]
    assert not list(tmp_path.glob("*.part"))


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path):
    MetricsLog(tmp_path).write(10, "train", {"loss": 1.0})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 20, "kind": "tra')
    assert _steps(tmp_path) == [10]
    MetricsLog(tmp_path, start_step=100).write(20, "train", {"loss": 1.0})
    assert _steps(tmp_path) == [10, 20]


def test_a_number_that_is_not_finite_stays_json(tmp_path):
    MetricsLog(tmp_path).write(1, "train", {"loss": float("nan"), "deep": {"x": float("inf")}})
    (record,) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert record["loss"] is None
    assert record["deep"] == {"x": None}


def test_other_processes_write_nothing(tmp_path):
    tracked = []
    MetricsLog(tmp_path / "run", writes=False, track=lambda *call: tracked.append(call)).write(1, "train", {"loss": 1})
    assert not (tmp_path / "run").exists()
    assert tracked == []


def test_trackers_get_the_numbers_under_flat_names(tmp_path):
    tracked = []
    log = MetricsLog(tmp_path, track=lambda values, step: tracked.append((values, step)))
    log.write(5, "validation", {"true": 0.25, "per_timestep": {100: 0.5}, "note": "text"})
    assert tracked == [({"validation/true": 0.25, "validation/per_timestep/100": 0.5}, 5)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("loss", Best(20, 0.1)), ("gap", Best(30, 0.9)), ("clip_i", Best(20, 0.8)), ("dino", Best(10, 0.7))],
)
def test_best_by_each_rule(tmp_path, rule, expected):
    log = MetricsLog(tmp_path)
    for step, true, gap, clip, dino in ((10, 0.3, 0.2, 0.5, 0.7), (20, 0.1, 0.3, 0.8, 0.6), (30, 0.1, 0.9, 0.7, 0.7)):
        log.write(step, "train", {"loss": 0.0})
        log.write(step, "validation", {"true": true, "gap_shuffled": gap})
        # at strength 0 everything is better, and does not count
        log.write(
            step, "samples", {"strengths": {"0": {"clip_i": 0.99, "dino": 0.99}, "1": {"clip_i": clip, "dino": dino}}}
        )
    assert best_so_far(log.records, rule) == expected


def test_nothing_measured_has_no_best():
    records = [{"step": 1, "kind": "train", "loss": 1.0}, {"step": 1, "kind": "validation", "true": None}]
    assert best_so_far(records, "loss") is None
    assert best_so_far(records, "clip_i") is None
