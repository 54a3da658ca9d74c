"""Without a terminal a run is heard of every minute, and its end says where everything is."""

import json
import logging
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w
from typer.testing import CliRunner

from ipadapter_trainer import progress
from ipadapter_trainer.cli import app
from ipadapter_trainer.progress import Lines, open_progress
from support.training import make_config, write_pictures


def test_a_line_every_minute_tells_step_loss_and_time_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Lines(total=1000, done=100) as lines:
        for _ in range(32):  # of 10 seconds: 5 minutes and 10 seconds between the first and the last
            lines.update()
            lines.set_postfix(loss="0.1234")
            now += 10.0
    assert caplog.messages[0] == "step 101 of 1,000"
    assert caplog.messages[1] == "step 107 of 1,000, loss 0.1234, 2 h 28 min left"
    assert [re.findall("step [0-9]+", line)[0] for line in caplog.messages] == [
        f"step {101 + 6 * minute}" for minute in range(6)
    ] + ["step 132"]


def test_a_terminal_has_a_bar_and_other_processes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert not isinstance(open_progress(10, 0, shows=True), Lines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(open_progress(10, 0, shows=True), Lines)
    assert open_progress(10, 0, shows=False).disable


def test_the_end_names_report_file_and_next_step(
    tmp_path: Path,
    small_base_folder: Callable[..., Path],
    encoder_folder: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    pictures = write_pictures(tmp_path / "pictures", 6)
    watched = {"every": 4, "images": 2}
    asked = make_config(small_base_folder(), encoder_folder(), pictures, tmp_path / "run", validation=watched)
    file = tmp_path / "my.toml"
    file.write_text(tomli_w.dumps(asked.model_dump(mode="json", exclude_none=True)))
    done = CliRunner().invoke(app, ["train", str(file)], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    lines = [message for message in caplog.messages if message.startswith("step ")]
    assert lines[0].startswith("step 1 of 4")
    assert lines[-1].startswith("step 4 of 4, loss ")
    assert "step/s" not in done.stderr, "no bar without a terminal"
    said = " ".join(done.stdout.split())
    run = tmp_path / "run"
    for words in (run / "report.html", run / "adapter.safetensors", "ComfyUI/models/ipadapter", "held-out pictures"):
        assert str(words) in said
    result = json.loads(CliRunner().invoke(app, ["train", str(file), "--json"]).stdout)
    assert result["report"] == str(run / "report.html")
    assert result["export"]["file"] == str(run / "adapter.safetensors")


@pytest.mark.long
def test_the_next_commands_are_about_the_same_run(
    tmp_path: Path,
    small_base_folder: Callable[..., Path],
    encoder_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = make_config(
        small_base_folder(), encoder_folder(), write_pictures(tmp_path / "pictures", 6), tmp_path / "run"
    )
    Path("my.toml").write_text(tomli_w.dumps(asked.model_dump(mode="json", exclude_none=True)))
    command = ["plan", "my.toml", "--set", "train.output=my run", "--set", "validation.images=2"]
    for is_last in (False, False, True):  # plan, train, eval
        done = CliRunner().invoke(app, command, env={"COLUMNS": "300"})
        assert done.exit_code == 0, done.output
        if not is_last:
            command = shlex.split(re.findall(r"next: ipadapter (.+)", done.stdout)[-1])
    assert command[0] == "eval"
    assert Path("my run/eval-adapter/sheet.png").is_file()
