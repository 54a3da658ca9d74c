"""Train IP-Adapter: a real trainer as its child, on tiny models: stopped, resumed, finished, used."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support import comfy_host
from support.train_node import MANY, folder_of, once_it_steps, steps_of, train, trainers, training_world

LINE = (86, 156, 214)  # colour of the smoothed loss


@pytest.fixture(scope="module")
def world(base_directory: Path) -> Iterator[Path]:
    yield from training_world(base_directory)


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


def batch() -> dict[str, Any]:
    """What is trained on."""
    images = torch.rand(4, 48, 64, 3, generator=torch.Generator().manual_seed(0))
    return {"folder": "none", "images": images, "captions": "a shape"}


@pytest.fixture(scope="module")
def story(world: Path) -> Story:
    """A batch of images is trained on, interrupted, queued again with a few steps more, and finished."""
    import comfy.model_management
    import comfy.utils

    told = Story("a batch")
    interrupter = once_it_steps(world, told.name, comfy.model_management.interrupt_current_processing)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        train(told.name, **batch(), steps=MANY)
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
        told.outputs = train(told.name, **batch(), steps=told.resumed_from + 12)
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
    advanced = [value for value, _ in story.bar[:-1]]  # the last one shows what came out
    assert advanced == sorted(set(advanced))
    assert story.pictures[0].size == (512, 288)
    _, curve, samples = story.outputs
    assert curve.shape == (1, 288, 512, 3)
    last = torch.from_numpy(np.array(story.pictures[-1]))
    assert torch.equal(last, (255 * curve[0]).round().byte()), "the page keeps the bar's last picture in sight"
    columns = ((255 * curve[0]).round() == torch.tensor(LINE)).all(-1).any(0)
    assert columns[60:490].float().mean() > 0.3, "a line goes across"
    assert samples.shape == (1, 64, 64, 3), "four pictures are too few to hold some out, and nothing is drawn"


@pytest.mark.slow
def test_the_finished_file_is_listed_at_once_and_loads(story: Story) -> None:
    file = f"{story.name}.safetensors"
    (choice,) = [item for item in comfy_host.schema("IPALoadAdapter").inputs if item.id == "adapter_file"]
    assert file in choice.options
    loaded = comfy_host.run("IPALoadAdapter", adapter_file=file, image_encoder="auto")
    assert loaded.origin == story.outputs[0].origin
    assert loaded.encoder is not None
    assert "step-" not in "".join(choice.options), "checkpoints are no adapters to choose"


@pytest.mark.long
@pytest.mark.slow
def test_a_finished_training_queued_again_leaves_its_file_as_it_is(world: Path, story: Story) -> None:
    """And so what hangs on it in ComfyUI's cache."""
    file = world / "output" / "ipadapter" / f"{story.name}.safetensors"
    before = file.stat()
    outputs = train(story.name, **batch(), steps=story.resumed_from + 12)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert outputs[0].origin == story.outputs[0].origin


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
    with pytest.raises(ValueError, match=r"seed.*What to do: .*queue again with the name a batch") as caught:
        train(story.name, **batch(), seed=5)
    assert str(caught.value).count("Found: ") == 1


@pytest.mark.parametrize("values", [[0.01, 0.6], [0.0], [0.5, 0.5], [2.0, 3.0], [-1.0, 1.0]])
def test_a_curve_has_room_around_it_and_none_below_0(base_directory: Path, values: list[float]) -> None:
    low, high = comfy_host.pack("nodes.training.chart").bounds(values)
    assert low <= min(values) <= max(values) < high
    assert (low < 0) == (min(values) < 0)


def test_pictures_stand_below_their_curve(base_directory: Path) -> None:
    together = comfy_host.pack("nodes.training.watching").together
    curve, sheet = Image.new("RGB", (512, 288), "blue"), Image.new("RGB", (1024, 300), "red")
    whole = together(curve, sheet)
    assert whole.size == (512, 288 + 150)
    assert [whole.getpixel((256, y)) for y in (0, 287, 288, 437)] == [(0, 0, 255)] * 2 + [(255, 0, 0)] * 2
    assert together(curve, None) is curve


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
