"""Train IP-Adapter: what it refuses before a trainer starts, and what goes wrong with one: said, and nothing is lost."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support import comfy_host
from support.train_node import (
    MANY,
    PICTURES,
    folder_of,
    once_it_steps,
    python_without,
    steps_of,
    train,
    trainers,
    training_world,
)
from support.training import write_pictures


@pytest.fixture(scope="module")
def world(base_directory: Path) -> Iterator[Path]:
    yield from training_world(base_directory)


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


def test_a_changed_folder_is_trained_on_anew(world: Path) -> None:
    """ComfyUI's cache asks for a fingerprint; a batch has none but its own."""
    pictures = write_pictures(world / "input" / "changing", 2)
    before = comfy_host.fingerprint("IPATrain", folder="changing")
    assert before
    assert comfy_host.fingerprint("IPATrain", folder="changing") == before
    (pictures / "0.txt").write_text("another caption")
    assert comfy_host.fingerprint("IPATrain", folder="changing") != before
    assert comfy_host.fingerprint("IPATrain", folder="none") == comfy_host.fingerprint("IPATrain", folder=None) == ""
    shutil.rmtree(pictures)


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
    count = 40  # of which some are held out: one of the others must be a small share
    pictures = write_pictures(world / "input" / "some broken", count)
    (pictures / "3.png").write_bytes(b"no picture")
    train("some broken", folder="some broken", steps=20)
    assert "3.png" in (folder_of(world, "some broken") / "run" / "skipped.jsonl").read_text()
    for number in range(count):
        (pictures / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"none of 40 pictures can be read.*queue again"):
        train("all broken", folder="some broken")
    shutil.rmtree(pictures)
