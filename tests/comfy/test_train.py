"""Train IP-Adapter: a real trainer as its child, on tiny models: stopped, resumed, finished, used; and what goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host, encoders
from support.recipe_models import write_small_base
from support.training import write_pictures

BASE, ENCODER, PICTURES = "tiny train/sd15/", "train encoder/", "train pictures"
MANY = 100_000  # steps, of which few are done
ASKED: dict[str, Any] = {
    "folder": PICTURES,
    "base_model": BASE,
    "image_encoder": ENCODER,
    "kind": "base",
    "steps": 3,
    "resolution": 64,
    "learning_rate": 0.0,
    "seed": 0,
}
LINE = (86, 156, 214)  # colour of the smoothed loss
LONGEST = 300  # seconds until a trainer on a busy machine has done its first steps


@pytest.fixture(scope="module")
def world(base_directory: Path) -> Iterator[Path]:
    """ComfyUI with a base model, an image encoder and pictures."""
    models, input_folder = base_directory / "models", base_directory / "input"
    (models / "diffusers" / BASE).mkdir(parents=True)
    write_small_base(models / "diffusers" / BASE)
    encoders.write_folder("clip", models / "clip_vision" / ENCODER)
    write_pictures(input_folder / PICTURES, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield base_directory
    for folder in (models / "diffusers" / "tiny train", models / "clip_vision" / ENCODER, input_folder / PICTURES):
        shutil.rmtree(folder)
    shutil.rmtree(base_directory / "output" / "ipadapter_runs", ignore_errors=True)


def folder_of(world: Path, name: str) -> Path:
    return world / "output" / "ipadapter_runs" / name


def train(name: str, **changes: Any) -> tuple[Any, ...]:
    return comfy_host.call("IPATrain", name=name, **ASKED | changes)


def records(world: Path, name: str) -> list[dict[str, Any]]:
    file = folder_of(world, name) / "run" / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def steps_of(world: Path, name: str) -> list[int]:
    return [record["step"] for record in records(world, name) if record["kind"] == "train"]


def once_it_steps(world: Path, name: str, do: Callable[[], object]) -> threading.Thread:
    """Do something from another thread when a run has written its first numbers."""

    def wait() -> None:
        deadline = time.monotonic() + LONGEST
        while not steps_of(world, name) and time.monotonic() < deadline:
            time.sleep(0.05)
        do()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def trainers(name: str) -> list[int]:
    """Processes that train under a name."""
    found = subprocess.run(["ps", "-wweo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    lines = [line for line in found if "ipadapter_trainer" in line and f"/{name}/" in line]
    return [int(line.split()[0]) for line in lines]


@dataclass
class Story:
    """Of one training that was stopped and went on.

    Attributes:
        seen: what was done up to the stop.
        bar: (value, total) of ComfyUI's progress bar, while it went on.
        pictures: that the bar showed.
    """

    name: str
    seen: list[int] = field(default_factory=list)
    resumed_from: int = 0
    bar: list[tuple[int, int]] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)
    outputs: tuple[Any, ...] = ()


@pytest.fixture(scope="module")
def story(world: Path) -> Story:
    """A batch of images is trained on, interrupted, queued again with a few steps more, and finished."""
    import comfy.model_management
    import comfy.utils

    told = Story("a batch")
    images = torch.rand(4, 48, 64, 3, generator=torch.Generator().manual_seed(0))
    batch = {"folder": "none", "images": images, "captions": "a shape"}
    interrupter = once_it_steps(world, told.name, comfy.model_management.interrupt_current_processing)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(told.name, **batch, steps=MANY)
    interrupter.join()
    assert trainers(told.name) == []
    told.seen = steps_of(world, told.name)
    (checkpoint,) = (folder_of(world, told.name) / "run" / "checkpoints").iterdir()
    told.resumed_from = int(checkpoint.name.removeprefix("step-"))

    def note(value: int, total: int, preview: Any, **_: object) -> None:
        told.bar.append((value, total))
        if preview is not None:
            told.pictures.append(preview[1])

    before = comfy.utils.PROGRESS_BAR_HOOK
    comfy.utils.set_progress_bar_global_hook(note)
    try:
        told.outputs = train(told.name, **batch, steps=told.resumed_from + 12)
    finally:
        comfy.utils.set_progress_bar_global_hook(before)
    return told


@pytest.mark.slow
def test_an_interrupted_training_goes_on_where_it_was(world: Path, story: Story) -> None:
    assert story.seen[-1] == story.resumed_from, "the stop wrote a checkpoint of the step it was at"
    done = steps_of(world, story.name)
    assert done[-1] == story.resumed_from + 12
    assert done == sorted(set(done))
    assert "going on from" in (folder_of(world, story.name) / "log.txt").read_text()


@pytest.mark.slow
def test_the_bar_and_the_curve_follow_it(story: Story) -> None:
    total = story.resumed_from + 12
    assert story.bar[-1] == (total, total)
    assert {of for _, of in story.bar} == {total}
    assert [value for value, _ in story.bar] == sorted({value for value, _ in story.bar})
    assert story.pictures[0].size == (512, 288)
    _, curve, samples = story.outputs
    assert curve.shape == (1, 288, 512, 3)
    columns = ((255 * curve[0]).round() == torch.tensor(LINE)).all(-1).any(0)
    assert columns[60:490].float().mean() > 0.3, "a line goes across"
    assert samples.shape == (1, 64, 64, 3), "four pictures are too few to hold some out, and nothing is drawn"


@pytest.mark.slow
def test_the_finished_file_is_listed_at_once_and_acts(
    world: Path, story: Story, model: Callable, apply: Callable, sample: Callable
) -> None:
    file = f"{story.name}.safetensors"
    (choice,) = [item for item in comfy_host.schema("IPALoadAdapter").inputs if item.id == "adapter_file"]
    assert file in choice.options
    loaded = comfy_host.run("IPALoadAdapter", adapter_file=file, image_encoder="auto")
    assert loaded.origin == story.outputs[0].origin
    assert loaded.encoder is not None
    assert "step-" not in "".join(choice.options), "checkpoints are no adapters to choose"


@pytest.mark.slow
def test_the_same_run_goes_on_in_a_terminal(world: Path, story: Story) -> None:
    from ipadapter_trainer.config_file import read_config

    config = read_config(folder_of(world, story.name) / "train.toml")
    assert config.run == folder_of(world, story.name) / "run"
    assert (config.train.steps, config.adapter.kind) == (story.resumed_from + 12, "base")
    written = read_config(config.run / "config.toml")
    assert written == config


@pytest.mark.slow
def test_a_batch_keeps_its_pictures_and_captions(world: Path, story: Story) -> None:
    pictures = sorted((folder_of(world, story.name) / "pictures").iterdir())
    assert [path.suffix for path in pictures] == [".png", ".txt"] * 4
    assert {path.read_text() for path in pictures if path.suffix == ".txt"} == {"a shape"}
    with pytest.raises(ValueError, match=r"other pictures or captions.*What to do: choose another name"):
        train(story.name, folder="none", images=torch.rand(4, 48, 64, 3), captions="a shape")


@pytest.mark.long
@pytest.mark.slow
def test_what_may_not_change_is_said_with_the_trainers_words(world: Path, story: Story) -> None:
    images = torch.rand(4, 48, 64, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"seed.*What to do: .*queue again with the name a batch") as caught:
        train(story.name, folder="none", images=images, captions="a shape", seed=5)
    assert str(caught.value).count("Found: ") == 1


def test_numbers_are_read_as_they_come(world: Path) -> None:
    place = comfy_host.pack("nodes.training.places").place_of("numbers")
    watcher = comfy_host.pack("nodes.training.watching").Watcher(place, since=100.0)
    assert watcher.numbers().losses == []
    place.run.mkdir(parents=True)
    file = place.run / "metrics.jsonl"

    def add(*lines: str) -> None:
        with file.open("a") as opened:
            opened.write("".join(lines))

    add('{"step": 1, "kind": "train", "time": 50, "loss": 2}\n', '{"step": 2, "kind": "train", "ti')
    assert watcher.numbers().losses == [(1, 2)]
    add('me": 110, "loss": 1.5}\n', '{"step": 2, "kind": "validation", "true": 0.5}\n', "no line\n", "[1]\n")
    add(
        '{"step": 3, "kind": "train", "time": 111, "loss": null}\n',
        '{"step": 4, "kind": "train", "time": 130, "loss": 1}\n',
    )
    numbers = watcher.numbers()
    assert (numbers.losses, numbers.checked) == ([(1, 2), (2, 1.5), (4, 1)], [(2, 0.5)])
    assert watcher.text(numbers, 10) == "step 4 of 10, loss 1.0000, 1 min left", "10 s a step in this session"
    part = file.with_name("part")
    part.write_text('{"step": 1, "kind": "train", "time": 50, "loss": 2}\n')
    part.replace(file)
    assert watcher.numbers().losses == [(1, 2)], "a run that goes on has dropped what came after its checkpoint"
    shutil.rmtree(place.folder)


def python_without(tmp_path: Path, script: str) -> str:
    """A program in place of Python, which starts it in another way."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\n{script.format(python=sys.executable)} "$@"\n')
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize("missing", ["ipadapter_trainer", "typer"])
def test_without_the_trainer_the_message_says_how_to_install_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    start = "exec {python} -I -S"  # no packages
    if missing != "ipadapter_trainer":
        (tmp_path / "path").mkdir()
        package = tmp_path / "path" / "ipadapter_trainer"
        package.symlink_to(comfy_host.ROOT / "trainer")
        (tmp_path / "path" / "ipadapter_core").symlink_to(comfy_host.ROOT / "ipadapter_core")
        start = f"PYTHONPATH={tmp_path / 'path'} exec {{python}} -S"
    monkeypatch.setattr(sys, "executable", python_without(tmp_path, start))
    with pytest.raises(ValueError, match=rf"lacks {missing}.*What to do: in .*pip install -e '\.\[train\]'") as caught:
        train("nothing there")
    assert str(comfy_host.ROOT) in str(caught.value)
    assert "pip install -e '.[train]'" in (comfy_host.ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            " ",
            "..",
            ".",
            "../up",
            "/abs",
            "-rf",
            "--config",
            "a/b",
            "a\\b",
            "a\nb",
            "a\0b",
            "a.b",
            " a",
            "a ",
            "con",
        ),
        *("LPT1", "x" * 65, "$(touch x)", "a;b", "a`b`"),
    ],
)
def test_names_that_lead_elsewhere_or_are_options(world: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"the name .*What to do: choose such a name"):
        train(name)


@pytest.mark.parametrize("name", ["mein Stil", "été", "a-b_c 1"])
def test_names_that_are_fine(world: Path, name: str) -> None:
    assert comfy_host.pack("nodes.training.places").place_of(name).name == name


def test_a_name_that_load_ip_adapter_lists_already_is_refused(world: Path) -> None:
    taken = world / "models" / "ipadapter" / "taken.safetensors"
    taken.parent.mkdir(exist_ok=True)
    taken.touch()
    with pytest.raises(ValueError, match=r"an adapter called taken.*choose another name"):
        train("taken")
    taken.unlink()


def test_a_run_folder_that_leads_out_is_refused(world: Path, tmp_path: Path) -> None:
    runs = world / "output" / "ipadapter_runs"
    runs.mkdir(parents=True, exist_ok=True)
    (runs / "linked").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="a link leads out of ComfyUI's output folder"):
        train("linked")
    (runs / "linked").unlink()
    assert list(tmp_path.iterdir()) == []


def choices(name: str) -> list[str]:
    (item,) = [item for item in comfy_host.schema("IPATrain").inputs if item.id == name]
    return list(item.options)


@pytest.mark.parametrize("folder", ["..", "../output", "/etc", ".", "", "absent", f"{PICTURES}/../..", "a\0b", "-x"])
def test_folders_outside_the_input_folder(world: Path, folder: str) -> None:
    with pytest.raises(ValueError, match=r"the folder .*What to do: (copy|put) "):
        train("outside", folder=folder)
    assert comfy_host.fingerprint("IPATrain", folder=folder) == ""
    assert not folder_of(world, "outside").exists()


def test_links_that_lead_out_are_not_followed(world: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "secret", 2)
    (world / "input" / "linked").symlink_to(tmp_path / "secret")
    assert PICTURES in choices("folder")
    assert "linked" not in choices("folder")
    with pytest.raises(ValueError, match="does not lie in ComfyUI's input folder"):
        train("outside", folder="linked")
    (world / "input" / "linked").unlink()
    mixed = write_pictures(world / "input" / "mixed", 2)
    (mixed / "out").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=r"a link in that folder, out, which leads out"):
        train("outside", folder="mixed")
    shutil.rmtree(mixed)


def test_the_servers_owner_may_allow_more(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = comfy_host.pack("nodes.training.places")
    allowed, other = write_pictures(tmp_path / "mine", 2), write_pictures(tmp_path / "other", 2)
    monkeypatch.setenv("IPADAPTER_TRAIN_FOLDERS", os.pathsep.join(["", str(allowed)]))
    assert str(allowed) in choices("folder")
    assert places.picture_folder(str(allowed)) == allowed
    (allowed / "within").mkdir()
    assert places.picture_folder(str(allowed / "within")) == allowed / "within"
    for folder in (other, allowed.parent, allowed / ".." / "other"):
        with pytest.raises(ValueError, match="does not lie in"):
            places.picture_folder(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": "none"}, "neither a folder nor images"),
        ({"images": torch.rand(2, 8, 8, 3)}, "a folder and images at once"),
        (
            {"folder": "none", "images": torch.rand(3, 8, 8, 3), "captions": "a\nb"},
            "2 lines of captions for 3 pictures",
        ),
        ({"base_model": "../sd15/"}, "for base_model"),
        ({"base_model": "absent.safetensors"}, "no file absent"),
        ({"image_encoder": "/etc/"}, "for image_encoder"),
        ({"kind": "--help"}, "kind"),
        ({"start_from": "absent.safetensors"}, "no file absent"),
        ({"steps": -1}, "steps"),
        ({"resolution": 63}, "resolution"),
        ({"seed": -1}, "seed"),
        ({"learning_rate": -0.1}, "learning_rate"),
    ],
)
def test_what_is_wrong_is_said_before_a_trainer_starts(world: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        train("wrong", **changes)
    assert "What to do: " in str(caught.value)
    assert not folder_of(world, "wrong").exists()


@pytest.mark.long
@pytest.mark.slow
def test_a_full_disk_is_said_and_with_room_the_training_goes_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        full.setattr(sys, "executable", python_without(tmp_path, "ulimit -f 100; exec {python}"))
        with pytest.raises(ValueError, match=r"cannot be written.*free some space.*queue again with the name full"):
            train("full", steps=2)
    train("full", steps=2)
    assert steps_of(world, "full")[-1] == 2


@pytest.mark.long
@pytest.mark.slow
def test_a_trainer_that_is_killed_is_said_and_goes_on(world: Path) -> None:
    def kill() -> None:
        for process in trainers("killed"):
            os.kill(process, signal.SIGKILL)

    killer = once_it_steps(world, "killed", kill)
    with pytest.raises(ValueError, match=r"was killed.*queue again with the name killed"):
        train("killed", steps=MANY)
    killer.join()
    train("killed", steps=2)
    assert steps_of(world, "killed")[-1] == 2


@pytest.mark.long
@pytest.mark.slow
def test_broken_pictures(world: Path) -> None:
    pictures = write_pictures(world / "input" / "some broken", 20)
    (pictures / "3.png").write_bytes(b"no picture")
    train("some broken", folder="some broken", steps=20)
    assert "3.png" in (folder_of(world, "some broken") / "run" / "skipped.jsonl").read_text()
    for number in range(20):
        (pictures / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"none of 20 pictures can be read.*queue again"):
        train("all broken", folder="some broken")
    shutil.rmtree(pictures)
