"""Captions and names of files are shown, whatever they hold: no page, terminal, card or tag obeys them."""

import io
import json
import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ipadapter_trainer import cli
from ipadapter_trainer.commands.output import emit
from ipadapter_trainer.config_file import parse_config, write_config
from ipadapter_trainer.files.export import export_adapter
from ipadapter_trainer.files.facts import ExportFacts
from ipadapter_trainer.metrics_log import MetricsLog
from ipadapter_trainer.watch.contact_sheet import save_grid
from ipadapter_trainer.watch.report import write_report
from ipadapter_trainer.watch.sampling import Reference, SampleGrid
from support.training_states import tiny_ipadapter

HOSTILE = {
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "ansi": "\x1b[31m\x1b]0;pwned\x07\x1b[2J",
    "c1": "\x9b31m\x85",
    "direction": "photo\u202egnp.exe\u2066\u200f",
    "markup": "[red]x[/red] [link=http://x]y[/]",
    "markdown": "| a | ![x](http://x/y.png) [y](javascript:alert(1))\n# heading",
    "template": "{{ 7 * 191 }} {% raw %}",
    "nul": "a\0b",
    "half": "a\udcffb",
}
OBEYED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]")


@pytest.fixture(params=HOSTILE)
def text(request: pytest.FixtureRequest) -> str:
    return HOSTILE[request.param]


def run_folder(folder: Path) -> Path:
    values = {
        "base": {"model": "sd15"},
        "encoder": {"model": "clip"},
        "data": {"path": "x"},
        "train": {"output": str(folder)},
    }
    write_config(
        parse_config({**values, "train": {"output": str(folder), "steps": 40}}, "test"), folder / "config.toml"
    )
    return folder


def test_the_report_shows_it(tmp_path: Path, text: str) -> None:
    run = run_folder(tmp_path)
    log = MetricsLog(run)
    rated = {"1": {"clip_t": 0.5}}
    log.write(10, "samples", {"strengths": rated, "prompts": {text: rated}})
    log.write(10, "note", {"text": text})
    (run / "skipped.jsonl").write_text(json.dumps({"key": text, "path": text, "reason": text}) + "\n")
    page = write_report(run).read_text(encoding="utf-8")
    assert OBEYED.search(page) is None
    assert "<script" not in page
    assert "<img" not in page
    assert "1337" not in page
    beginning = re.match(r"[\w\[]*", text)
    assert beginning is not None
    assert beginning.group() in page


def test_sample_sheets_show_it(tmp_path: Path, text: str) -> None:
    picture = Image.new("RGB", (16, 16))
    reference = Reference(
        text * 9, picture, text, text, {"features": torch.zeros(1, 4)}, {"text": torch.zeros(1, 2, 3)}
    )
    other = replace(reference, prompt="another")  # then texts are in the names
    paths = save_grid(SampleGrid((reference, other), (1.0,), ((picture,), (picture,))), tmp_path / "samples")
    assert all(path.parent == tmp_path / "samples" and path.is_file() for path in paths)
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in paths)


def test_long_names_in_letters_of_four_bytes_are_file_names(tmp_path: Path) -> None:
    name, picture = "\U00020000" * 80, Image.new("RGB", (16, 16))
    reference = Reference(name, picture, name, name, {"features": torch.zeros(1, 4)}, {"text": torch.zeros(1, 2, 3)})
    other = replace(reference, prompt="another")
    assert save_grid(SampleGrid((reference, other), (1.0,), ((picture,), (picture,))), tmp_path)[1].is_file()


def test_a_table_on_a_terminal_shows_it(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    emit({"file": text, "texts": {text: 1.0}, "next": [text]}, False)
    shown = capsys.readouterr().out
    assert OBEYED.search(shown) is None
    if text == HOSTILE["markup"]:
        assert shown.count("[red]x[/red]") == 3


def test_lines_of_the_log_show_it(text: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(cli.VisibleFormatter("%(message)s"))
    handler.handle(logging.LogRecord("x", logging.WARNING, "", 0, "skipped %s", (text,), None))
    assert OBEYED.search(stream.getvalue()) is None


def test_an_error_on_the_terminal_shows_it(tmp_path: Path) -> None:
    config = tmp_path / "\x1b[31mx\u202e.toml"
    command = [sys.executable, "-m", "ipadapter_trainer", "train", str(config)]
    said = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert said.returncode == 1
    assert "\\x1b[31mx" in said.stderr
    assert OBEYED.search(said.stderr) is None


def test_the_model_card_shows_it(tmp_path: Path, text: str) -> None:
    facts = ExportFacts(title=text, preprocess=None, author=text, training={"converted_from": text})
    card = export_adapter(tiny_ipadapter(), tmp_path / "a.safetensors", precision=None, facts=facts).card.read_text()
    assert OBEYED.search(card) is None
    assert not re.search(r"<(script|img)|(?<!\\)\[(x|y|red|link)|^# heading|1337", card, re.MULTILINE)
    row = next(line for line in card.splitlines() if line.startswith("| author"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_tags_of_trackers_show_it(tmp_path: Path, text: str) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "board")) as board:

        def track(values: dict[str, float], step: int) -> None:
            tags.extend(values)
            for tag, value in values.items():
                board.add_scalar(tag, value, step)

        tags: list[str] = []
        MetricsLog(tmp_path, track=track).write(1, "samples", {"prompts": {text: {"1": {"clip_t": 0.5}}}})
    assert tags
    assert all(OBEYED.search(tag) is None for tag in tags)
