"""Files are written so that every reader takes them, and equal contents are equal bytes."""

import os
import random
import stat
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from ipadapter_core.file.container import read_tensors, tensor_hash, write_safetensors
from ipadapter_core.file.header import DTYPES
from ipadapter_core.file.layout import data_hash

METADATA = {"b": 'a "quote"\n\x01', "a": "\u202eä\U0001f600", "c": ""}


def every_kind() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {f"{name} {size}": (torch.rand(size) * 9).to(dtype) for name, dtype in DTYPES.items() for size in (3, 0)}
    return tensors | {"scalar": torch.tensor(2.5), "turned": torch.rand(3, 5).T, "matrix": torch.rand(2, 1, 4)}


def as_bytes(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_safetensors_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, every_kind(), METADATA)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == METADATA
        found = {name: as_bytes(file.get_tensor(name)) for name in tuple(file.keys())}
    assert found == {name: as_bytes(tensor) for name, tensor in every_kind().items()}
    assert {name: as_bytes(tensor) for name, tensor in read_tensors(path).tensors.items()} == found


def test_equal_contents_are_equal_bytes(tmp_path: Path) -> None:
    tensors, draw = list(every_kind().items()), random.Random(0)
    written = set()
    for number in range(5):
        draw.shuffle(tensors)
        metadata = draw.sample(list(METADATA.items()), len(METADATA))
        write_safetensors(tmp_path / f"{number}", dict(tensors), dict(metadata))
        written.add((tmp_path / f"{number}").read_bytes())
    assert len(written) == 1


def test_data_lie_as_safetensors_own_writer_lays_them(tmp_path: Path) -> None:
    tensors = {
        name: tensor.contiguous()
        for name, tensor in every_kind().items()
        if tensor.dtype in (torch.float32, torch.float16, torch.int8)
    }
    write_safetensors(tmp_path / "ours", tensors, {"format": "pt"})
    safetensors.torch.save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_the_hash_of_tensors_is_that_of_their_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, every_kind(), METADATA)
    assert data_hash(every_kind()) == tensor_hash(path)


@pytest.mark.skipif(os.name == "nt", reason="files have no such mode")
def test_others_may_read_what_they_may_read_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "any").touch()
    write_safetensors(tmp_path / "a.safetensors", every_kind(), {})
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == stat.S_IMODE((tmp_path / "any").stat().st_mode)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, every_kind(), METADATA)
    before = path.read_bytes()
    with pytest.raises(RuntimeError):
        write_safetensors(path, {"a": torch.rand(3), "b": torch.rand(3, device="meta")}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("end", ["", ".writing"])
def test_no_link_is_written_through(tmp_path: Path, end: str) -> None:
    (tmp_path / "other").write_bytes(b"of somebody else")
    (tmp_path / f"a.safetensors{end}").symlink_to(tmp_path / "other")
    write_safetensors(tmp_path / "a.safetensors", every_kind(), {})
    assert (tmp_path / "other").read_bytes() == b"of somebody else"
    assert not (tmp_path / "a.safetensors").is_symlink()
    assert read_tensors(tmp_path / "a.safetensors").tensors.keys() == every_kind().keys()
