"""A process that dies at any write of an export or a conversion leaves the file that was there, or the new one whole."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.file.container import read_tensors
from ipadapter_trainer.convert.conversion import convert_file
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from support.crash import DIED, die_before_write
from support.encoders import write_folder
from support.training_states import run_config, tiny_ipadapter, write_checkpoint

FEWEST = 20  # places to die at


@pytest.fixture(autouse=True)
def still() -> None:
    torch.set_num_threads(1)  # a copy of this process has no others


def check_every_death(action: Callable[[], object], target: Path, earlier: bytes) -> None:
    """Kill the action before each of its writes; then do it again."""
    card = target.with_suffix(".md")
    action()
    wanted = target.read_bytes(), card.read_bytes()
    deaths, status, found, left = 0, DIED, list[bool](), 0
    while status == DIED:
        target.write_bytes(earlier)
        status = die_before_write(deaths, action)
        is_new = target.read_bytes() != earlier
        assert not is_new or target.read_bytes() == wanted[0], f"half a file after {deaths} writes"
        found.append(is_new)
        left += len(set(target.parent.iterdir()) - {target, card})
        if deaths % 2 == 0:
            action()
            assert (target.read_bytes(), card.read_bytes()) == wanted
            assert set(target.parent.iterdir()) == {target, card}, f"something is left of {deaths} writes"
        for path in set(target.parent.iterdir()) - {target, card}:  # so that each death is one of the same writes
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        deaths += 1
    assert status == 0
    assert deaths > FEWEST
    assert found == sorted(found), "what was there is gone again"
    assert left, "nothing that had to be taken away"
    action()
    read_tensors(target, verify_again=True)
    assert set(target.parent.iterdir()) == {target, card}


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_an_export_killed_at_any_write(tmp_path: Path) -> None:
    write_folder("clip", tmp_path / "encoder")
    config = run_config(tmp_path / "run", tmp_path / "encoder")
    checkpoint = write_checkpoint(config, tiny_ipadapter("base"))
    target = tmp_path / "out" / "mine.safetensors"
    target.parent.mkdir()
    check_every_death(lambda: export_checkpoint(checkpoint, target), target, b"an earlier file")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_conversion_killed_at_any_write(tmp_path: Path) -> None:
    source = tmp_path / "source.bin"
    torch.save(nested_of(tiny_ipadapter("base")), source)
    target = tmp_path / "out" / "mine.safetensors"
    target.parent.mkdir()
    check_every_death(lambda: convert_file(source, target), target, b"an earlier file")
    assert read_tensors(target).tensors


def nested_of(adapter: Any) -> dict[str, dict[str, torch.Tensor]]:
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in adapter.state_dict().items():
        part, _, inner = name.partition(".")
        parts.setdefault(part, {})[inner] = tensor
    return parts
