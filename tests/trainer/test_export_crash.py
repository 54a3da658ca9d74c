"""A process that dies at any write of an export or a conversion leaves the file that was there, or the new one whole."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.file.container import read_tensors, tensor_hash
from ipadapter_trainer.convert.conversion import convert_file
from ipadapter_trainer.files import facts
from ipadapter_trainer.files.checkpoint_export import export_checkpoint
from ipadapter_trainer.seal import check_seal
from support.crash import DIED, die_before_write
from support.encoders import write_folder
from support.training_states import run_config, tiny_ipadapter, write_checkpoint

FEWEST = 20  # places to die at


class _Noon(facts.datetime):
    """A clock that stands, so that files can be compared."""

    @classmethod
    def now(cls, tz: Any = None) -> "_Noon":
        return cls(2026, 1, 1, 12, tzinfo=tz)


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "datetime", _Noon)
    torch.set_num_threads(1)  # a copy of this process has no others


def content(file: Path) -> tuple[str, dict[str, str]]:
    """All of it: metadata are written in an order that is safetensors' own, another one each time."""
    check_seal(file)
    return tensor_hash(file), read_tensors(file).metadata


def check_every_death(action: Callable[[], object], target: Path, earlier: bytes) -> None:
    """Kill the action before each of its writes; then do it again."""
    card = target.with_suffix(".md")
    action()
    wanted = content(target), card.read_text()
    deaths, status, found = 0, DIED, []
    while status == DIED:
        target.write_bytes(earlier)
        status = die_before_write(deaths, action)
        is_new = target.read_bytes() != earlier
        assert not is_new or content(target) == wanted[0], f"half a file after {deaths} writes"
        found.append(is_new)
        if deaths % 5 == 0:
            action()
            assert (content(target), card.read_text()) == wanted
        deaths += 1
    assert status == 0
    assert deaths > FEWEST
    assert found == sorted(found), "what was there is gone again"
    action()
    check_seal(target)
    others = [path.name for path in target.parent.iterdir() if path not in (target, card)]
    assert [name for name in others if not name.startswith(".")] == [], "only hidden folders are left of the killed"


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
