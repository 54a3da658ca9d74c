"""report.html: what a run has to show, in one file, from any state of the run folder."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from ipadapter_trainer.config_file import ConfigError, parse_config, write_config
from ipadapter_trainer.metrics_log import MetricsLog
from ipadapter_trainer.watch.contact_sheet import save_grid
from ipadapter_trainer.watch.plots import Curve, Plot, smoothed, thinned
from ipadapter_trainer.watch.report import REPORT_FILE, write_report
from ipadapter_trainer.watch.sampling import Reference, SampleGrid
from support.browser import CHROMIUM

UNSAFE = "a <b>bold</b> & 'quoted' caption"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "my run"
    folder.mkdir()
    config = {
        "base": {"model": "sd15"},
        "encoder": {"model": "clip"},
        "data": {"path": "pictures", "caption": UNSAFE},
        "train": {"output": str(folder), "steps": 40},
    }
    write_config(parse_config(config, "test"), folder / "config.toml")
    return folder


def _validation(gap, error=0.001):
    return {
        "true": 0.2,
        "null": 0.25,
        "shuffled": 0.2 + gap,
        "gap_shuffled": gap,
        "gap_error": error,
        "pictures": 16,
        "per_timestep": {100: 0.3, 900: 0.1},
    }


def _train(run, steps=(10, 20)):
    log = MetricsLog(run)
    for step in steps:
        log.write(step, "train", {"loss": 0.5, "learning_rate": 1e-4, "images_per_second": 12.5})
    return log


def _sample(run, step):
    picture = Image.fromarray(np.random.default_rng(step).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    reference = Reference(
        "cat.png", picture, "", UNSAFE, {"features": torch.zeros(1, 4)}, {"text": torch.zeros(1, 2, 3)}
    )
    save_grid(SampleGrid((reference,), (0.0, 1.0), ((picture, picture),)), run / f"samples/step-{step:08d}")


def _page(run):
    path = write_report(run)
    assert path == run / REPORT_FILE
    assert not list(run.glob("*.part"))
    return path.read_text(encoding="utf-8")


def test_shows_curves_samples_skipped_and_settings(run):
    log = _train(run)
    log.write(20, "validation", _validation(0.05))
    log.write(20, "samples", {"strengths": {"0": {"clip_i": 0.5}, "1": {"clip_i": 0.75}}})
    for step in (10, 20):
        _sample(run, step)
    line = json.dumps({"key": "1", "path": "broken.jpg", "reason": "cut off"})
    torn = line[:20]  # as a kill leaves it
    (run / "skipped.jsonl").write_text(f"{line}\n{torn}}}\n{torn}")
    page = _page(run)
    titles = re.findall(r"<h3>([^<]+)</h3>", page)
    assert [title for title in titles if not title.startswith("Step")][:6] == [
        "Training loss",
        "Validation loss",
        "Gap to a wrong reference",
        "Loss by timestep",
        "CLIP-I",
        "Learning rate",
    ]
    assert "Step 20 of 40" in page
    assert "12.5 images/s" in page
    assert "broken.jpg" in page
    assert "cut off (1)" in page
    assert "[data.augment]" in page
    assert page.index("at step 20") < page.index("at step 10")
    assert page.count("data:image/jpeg;base64,") == 2


def test_measures_of_each_text_are_in_a_table(run):
    log = _train(run)
    log.write(10, "samples", {"strengths": {"1": {"clip_t": 0.1}}})
    assert "By text" not in _page(run)
    rated = {"0.5": {"clip_t": 0.125}, "1": {"clip_t": 0.25, "dino": 0.5}}
    log.write(20, "samples", {"strengths": rated, "prompts": {UNSAFE: rated, "a dog": {"1": {"clip_t": 0.375}}}})
    page = _page(run)
    table = page[page.index("By text") :].partition("</table>")[0]
    assert "step 20" in table
    assert re.findall(r"<t[hd]>([^<]*)</t", table) == [
        "Text", "CLIP-T at 0.5", "CLIP-T at 1", "DINO similarity at 1",
        "a &lt;b&gt;bold&lt;/b&gt; &amp; &#39;quoted&#39; caption", "0.125", "0.250", "0.500",
        "a dog", "", "0.375", "",
    ]  # fmt: skip


def test_needs_nothing_but_itself(run):
    _train(run)
    _sample(run, 10)
    page = _page(run)
    assert "<script" not in page
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert set(re.findall(r"https?://[^\"' ]+", page)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_pictures_come_before_curves(run):
    _train(run)
    _sample(run, 10)
    page = _page(run)
    assert 0 < page.index("<h2>Sample pictures") < page.index("<h2>Curves") < page.index("<h2>Settings")


def test_loads_itself_anew_only_while_the_run_goes_on(run):
    _train(run)
    assert "http-equiv" not in _page(run)
    assert '<meta http-equiv="refresh" content="60">' in write_report(run, is_live=True).read_text(encoding="utf-8")


def test_escapes_what_users_wrote(run):
    _train(run).write(20, "note", {"text": UNSAFE})
    (run / "skipped.jsonl").write_text(json.dumps({"key": "1", "path": UNSAFE, "reason": UNSAFE}) + "\n")
    page = _page(run)
    assert "<b>" not in page
    assert page.count("a &lt;b&gt;bold&lt;/b&gt; &amp;") == 5


@pytest.mark.parametrize(
    ("gap", "error", "verdict"),
    [
        (0.05, 0.0005, "The adapter uses the reference"),
        (0.003, 0.0015, "Too few held-out pictures to be sure"),
        (0.0002, 0.0005, "No sign yet that the adapter uses the reference"),
        (-0.05, 0.0005, "Something is wrong"),
        (None, None, "Not validated yet"),
    ],
)
def test_says_whether_the_reference_is_used(run, gap, error, verdict):
    log = _train(run)
    if gap is not None:
        log.write(20, "validation", _validation(gap, error))
    assert verdict in _page(run)


def test_a_run_of_an_earlier_version_is_judged_by_the_pictures_it_asked_for(run):
    record = _validation(0.05, error=0.02)
    del record["pictures"]
    _train(run).write(20, "validation", record)
    assert "16 held-out pictures" in _page(run)


def test_time_left_follows_from_the_recent_pace(run):
    log = _train(run, steps=(10, 20, 30))
    lines = [{**record, "time": 1000.0 + 6 * record["step"]} for record in log.records]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = _page(run)
    assert "6.00 s per step" in page
    assert "1 min" in page


def test_a_clock_that_was_put_back_or_stood_is_no_harm(run):
    log = _train(run, steps=(10, 20, 30))
    for times in ((50.0, 20.0, 80.0), (50.0, 50.0, 50.0), (4e9, 3e9, 2e9)):
        lines = [
            {**record, "time": time, "images_per_second": None} for record, time in zip(log.records, times, strict=True)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert "Time left</dt><dd>-" not in _page(run)


def test_a_run_that_just_began_has_a_report(run):
    page = _page(run)
    assert "Nothing measured yet" in page
    assert "None drawn yet" in page


def test_a_loss_that_is_no_number_does_not_hide_the_rest(run):
    log = _train(run)
    log.write(20, "validation", {**_validation(float("nan"), float("nan")), "true": float("nan")})
    page = _page(run)
    assert "not a number" in page
    assert "Loss by timestep" in page


def test_only_the_newest_sheets_are_kept_in_the_file(run):
    for step in range(1, 15):
        _sample(run, step)
    page = _page(run)
    assert page.count("data:image/jpeg") == 12
    assert "Step 14<" in page
    assert "Step 2<" not in page


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.toml cannot be read"):
        write_report(tmp_path)


def test_means_of_the_smoothing_and_thinning():
    constant = [(step, 2.0) for step in range(1000)]
    assert all(y == pytest.approx(2.0) for _, y in smoothed(constant))
    few = thinned([(float(step), float(step % 2)) for step in range(1000)], most=100)
    assert len(few) == 100
    assert all(y == 0.5 for _, y in few)
    assert thinned(constant[:7]) == constant[:7]


def test_plots_take_the_colors_of_the_page():
    svg = Plot("A & B", "", "step", (Curve([(0, 1), (1, 2)], "a", errors=[0.1, 0.1]),)).svg
    assert svg.startswith('<svg role="img" aria-label="A &amp; B"')
    assert "var(--a)" in svg
    assert not re.search(r"#0102\w\w|font-family|<style", svg)


@pytest.mark.skipif(shutil.which(CHROMIUM) is None, reason=f"no {CHROMIUM} here")
def test_a_browser_opens_it(run, tmp_path):
    log = _train(run)
    for step, gap in ((10, 0.01), (20, 0.05)):
        log.write(step, "validation", _validation(gap))
    _sample(run, 20)
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [CHROMIUM, *options, "--window-size=900,3600", f"--screenshot={picture}", write_report(run).as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    colors = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    orange = (np.abs(colors.astype(int) - (0xC2, 0x57, 0x0C)).max(axis=1) < 8).sum()
    assert orange > 300  # curves are drawn, in the page's colors
