"""`validation.references` and `validation.prompts`: the user's own pictures are drawn from, each with each text."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ipadapter_core.errors import BadInputError, IPAdapterError
from ipadapter_core.network.adapter import save_adapter
from ipadapter_trainer.cli import app
from ipadapter_trainer.config import Config
from ipadapter_trainer.config_file import ConfigError
from ipadapter_trainer.evaluation import evaluate
from ipadapter_trainer.loop import train
from ipadapter_trainer.metrics_log import read_records
from ipadapter_trainer.plan_words import plan_in_words
from ipadapter_trainer.planning import make_plan
from ipadapter_trainer.run import Run, open_run
from ipadapter_trainer.watch.contact_sheet import contact_sheet, save_grid
from ipadapter_trainer.watch.references import open_drawing
from ipadapter_trainer.watch.sampling import Reference, SampleGrid, Sampler, Share, sample_grid
from support.training import make_config, write_pictures

NOWHERE = Path("nowhere")
DRAWN = {"images": 2, "sample_every": 2, "sampler_steps": 1, "strengths": [0.0, 1.0]}
TEXTS = ["a red cat", ""]
ALONE = Share()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two pictures, whose names are not in the order of their making, and what is no picture."""
    folder = tmp_path / "own"
    written = write_pictures(tmp_path / "written", 4)
    (folder / "deep").mkdir(parents=True)
    shutil.copy(written / "3.png", folder / "deep" / "a.png")
    shutil.copy(written / "2.png", folder / "c.png")
    (folder / "c.txt").write_text("a blue disc")
    (folder / "notes.md").write_text("mine")
    return folder


@pytest.fixture
def config(
    tmp_path: Path, small_base_folder: Callable[..., Path], encoder_folder: Callable[..., Path]
) -> Callable[..., Config]:
    pictures = write_pictures(tmp_path / "pictures", 6)

    def make(name: str = "run", steps: int = 2, **validation: Any) -> Config:
        places = small_base_folder(), encoder_folder(), pictures, tmp_path / name
        trained = {"steps": steps, "batch_size": 2, "trackers": []}
        return make_config(*places, train=trained, validation=DRAWN | validation)

    return make


def drawing(run: Run) -> tuple[Sampler, list[Reference]]:
    return open_drawing(run.config, run.held_out, run.base, run.reader)


def drawn(run: Run, share: Share = ALONE) -> SampleGrid:
    sampler, references = drawing(run)
    return sample_grid(sampler, run.network, run.objective.no_image, references, share=share)


def labels(references: tuple[Reference, ...] | list[Reference]) -> list[tuple[str, str]]:
    return [(reference.name, reference.prompt) for reference in references]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": TEXTS, "prompt": "a dog"}, r"validation\.prompt and validation\.prompts"),
        ({"prompts": TEXTS, "prompt": "none"}, r"validation\.prompt and validation\.prompts"),
        ({"prompts": ["a", "b", "a"]}, r"validation\.prompts names 'a' twice"),
    ],
)
def test_texts_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(NOWHERE, NOWHERE, NOWHERE, NOWHERE, validation=settings)


def gone(own: Path) -> Path:
    return own / "gone"


def no_picture(own: Path) -> Path:
    (own / "empty").mkdir()
    return own / "empty"


def broken(own: Path) -> Path:
    whole = (own / "c.png").read_bytes()
    (own / "c.png").write_bytes(whole[: len(whole) // 2])  # its header is as it was
    return own


def lost(own: Path) -> Path:
    (own / "list.csv").write_text("image\nc.png\nb.png\n")
    return own / "list.csv"


def one_picture(own: Path) -> Path:
    return own / "c.png"


MISTAKES: dict[Callable[[Path], Path], str] = {
    gone: r"validation\.references = .*gone.*which is no folder and no list",
    no_picture: r"validation\.references = .*no pictures in .*empty",
    broken: r"validation\.references: .*c\.png cannot be used",
    lost: r"validation\.references: .*b\.png cannot be used",
    one_picture: r"validation\.references = .*c\.png.*which is no folder and no list",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_references_are_looked_at_before_models_are_loaded(
    tmp_path: Path, own: Path, mistake: Callable[[Path], Path]
) -> None:
    """The models of this config do not exist, and nobody gets so far as to see it."""
    pictures = write_pictures(tmp_path / "pictures", 6)
    validation = DRAWN | {"references": str(mistake(own))}
    asked = make_config(NOWHERE, NOWHERE, pictures, tmp_path / "run", validation=validation)
    with pytest.raises(IPAdapterError, match=MISTAKES[mistake]):
        open_run(asked)
    with pytest.raises(IPAdapterError, match=MISTAKES[mistake]):
        evaluate(asked, tmp_path / "gone.safetensors", tmp_path / "out", images=None)


def test_every_own_picture_is_drawn_with_every_text_in_the_order_of_names(
    config: Callable[..., Config], own: Path
) -> None:
    run = open_run(config(references=str(own), prompts=TEXTS, samples=1))
    _, references = drawing(run)
    assert labels(references) == [(name, text) for name in ("c.png", "deep/a.png") for text in TEXTS]
    assert [reference.caption for reference in references] == ["a blue disc", "a blue disc", "", ""]
    for reference, picture in zip(references[::2], ("c.png", "deep/a.png"), strict=True):
        with Image.open(own / picture) as image:
            assert np.array_equal(np.asarray(reference.picture), np.asarray(image.convert("RGB")))


def test_own_captions_and_lists_are_read(config: Callable[..., Config], own: Path) -> None:
    (own / "list.jsonl").write_text("".join(json.dumps({"image": name}) + "\n" for name in ("deep/a.png", "c.png")))
    _, references = drawing(open_run(config(references=str(own), prompt="none")))
    assert labels(references) == [("c.png", "a blue disc"), ("deep/a.png", "")]
    _, references = drawing(open_run(config(references=str(own / "list.jsonl"))))
    assert labels(references) == [("deep/a.png", ""), ("c.png", "")]


def test_another_text_leaves_all_other_pictures_as_they_were(config: Callable[..., Config], own: Path) -> None:
    """The noise is the picture's, so that two texts of it can be compared."""
    one, two = (
        drawn(open_run(config(references=str(own), prompts=prompts, strengths=[0.0, 1.0])))
        for prompts in (["a red cat"], ["a dog", "a red cat"])
    )
    assert [reference.prompt for reference in two.references] == ["a dog", "a red cat"] * 2
    for row, same in zip(one.rows, two.rows[1::2], strict=True):
        for picture, other in zip(row, same, strict=True):
            difference = np.abs(np.asarray(picture, dtype=int) - np.asarray(other, dtype=int))
            assert difference.max() <= 1  # batches of another size round otherwise
    assert any(np.asarray(a).tobytes() != np.asarray(b).tobytes() for a, b in zip(*two.rows[:2], strict=True))


def test_processes_share_the_rows_of_all_texts(config: Callable[..., Config], own: Path) -> None:
    run = open_run(config(references=str(own), prompts=TEXTS))
    parts: list[list[Any]] = []

    def keep(mine: list[Any]) -> list[Any]:
        parts.append(mine)
        return mine

    for rank in range(3):
        with pytest.raises(KeyError):  # nobody has sent the others' rows
            drawn(run, Share(rank, 3, keep))
    assert [len(part) for part in parts] == [2, 2, 0]
    whole = drawn(run, Share(0, 3, lambda _: [row for part in parts for row in part]))
    assert labels(whole.references) == labels(drawing(run)[1])
    assert len(whole.rows) == 4


def test_sheet_and_files_name_reference_and_text(config: Callable[..., Config], own: Path, tmp_path: Path) -> None:
    run = open_run(config(references=str(own), prompts=TEXTS))
    grid = drawn(run)
    names = [path.name for path in save_grid(grid, tmp_path / "out")]
    assert names[1] == "00-c-a_red_cat-strength-0.png"
    assert names[3] == "01-c-no_text-strength-0.png"
    assert len(set(names)) == 1 + 4 * 2
    assert [has_ink(grid, row) for row in range(4)] == [True] * 4, "no text is said where others have one"
    alone = open_run(config(references=str(own)))
    assert [has_ink(drawn(alone), row) for row in range(2)] == [False] * 2
    assert save_grid(drawn(alone), tmp_path / "alone")[1].name == "00-c-strength-0.png"


def has_ink(grid: SampleGrid, row: int) -> bool:
    """Whether something is written below the drawn pictures of a row."""
    sheet = contact_sheet(grid).convert("L")
    bottom = (sheet.height - 36) // len(grid.rows) * (row + 1) + 36
    return sheet.crop((264, bottom - 32, sheet.width, bottom - 8)).getextrema()[0] < 128


def test_a_run_goes_on_with_other_references_and_texts(config: Callable[..., Config], own: Path) -> None:
    train(config(steps=2, strengths=[1.0]))
    asked = config(steps=4, strengths=[1.0], references=str(own), prompts=TEXTS)
    assert train(asked).step == 4
    pictures = {step: len(list((asked.run / f"samples/step-{step:08d}").glob("[0-9]*.png"))) for step in (0, 2, 4)}
    assert pictures == {0: 2, 2: 2, 4: 4}
    assert train(config(steps=6, strengths=[1.0])).step == 6
    assert [record["step"] for record in read_records(asked.run) if record["kind"] == "samples"] == [0, 2, 4, 6]


def test_eval_draws_and_counts_them(config: Callable[..., Config], own: Path, tmp_path: Path) -> None:
    asked = config(references=str(own), prompts=TEXTS)
    file = tmp_path / "adapter.safetensors"
    save_adapter(open_run(asked).network.adapter, file)
    said = evaluate(asked, file, tmp_path / "out", images=1)
    assert (said["references"], said["texts"]) == (1, 2)
    assert len(list((tmp_path / "out").glob("0*-c-*.png"))) == 2 * 2
    with pytest.raises(BadInputError, match=r"3 pictures to draw from, of 2 of validation\.references"):
        evaluate(asked, file, tmp_path / "out", images=3)


def test_sample_takes_folders_and_several_texts(config: Callable[..., Config], own: Path, tmp_path: Path) -> None:
    asked = config()
    file, empty = tmp_path / "adapter.safetensors", tmp_path / "none"
    save_adapter(open_run(asked).network.adapter, file)
    empty.mkdir()
    command = ["sample", "--base", asked.base.model, "--adapter", str(file), "--encoder", asked.encoder.model]
    command += ["--strength", "1", "--steps", "1", "--size", "64", "-o", str(tmp_path / "out"), "--json"]
    texts = [part for text in TEXTS for part in ("--prompt", text)]
    result = CliRunner().invoke(app, [*command, "--image", str(own), *texts], catch_exceptions=False)
    names = [Path(path).name for path in json.loads(result.stdout)["pictures"]]
    assert names == [
        f"{row:02}-{name}-{text}-strength-1.png"
        for row, (name, text) in enumerate((name, text) for name in "ca" for text in ("a_red_cat", "no_text"))
    ]
    with pytest.raises(BadInputError, match=r"--image .*none.*no pictures"):
        CliRunner().invoke(app, [*command, "--image", str(empty)], catch_exceptions=False)


def test_plan_counts_pictures_and_their_time(config: Callable[..., Config], own: Path) -> None:
    asked = config(steps=7, sample_every=3, references=str(own), prompts=["a", "b", "c"])
    plan = make_plan(asked).to_json()
    samples = plan["samples"]
    assert isinstance(samples, dict)
    assert 0 < samples["hours_each_time"] * 3600 < 60
    assert samples["hours"] == pytest.approx(4 * samples["hours_each_time"])
    counts = {name: count for name, count in samples.items() if "hours" not in name}
    # at steps 0, 3, 6 and 7
    assert counts == {"references": 2, "texts": 3, "strengths": 2, "pictures": 12, "times": 4}
    said = plan_in_words(plan, asked, memory=None, file="my.toml")
    assert str(said["samples"]).startswith("12 pictures (2 references, 3 texts, 2 strengths) 4 times, about ")
    assert str(said["time"]).endswith("validation comes on top)")
    without = make_plan(config(sample_every=None)).to_json()
    assert "samples" not in without
    assert "samples" not in plan_in_words(without, asked, memory=None, file="my.toml")


def test_the_time_that_plan_says_follows_from_the_denoising_steps(config: Callable[..., Config]) -> None:
    plan = make_plan(config(samples=1)).to_json()["samples"]
    longer = make_plan(config(samples=1, sampler_steps=100)).to_json()["samples"]
    assert isinstance(plan, dict)
    assert isinstance(longer, dict)
    assert longer["hours"] > 5 * plan["hours"]
