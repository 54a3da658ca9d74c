"""Adapter files are read as they were written, and written so that they read the same again."""

import json
import os
import struct
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from ipadapter_core.errors import UnreadableFileError
from ipadapter_core.file import container
from ipadapter_core.file.container import read_header, read_tensors, tensor_hash, write_safetensors
from ipadapter_core.file.header import DTYPES, HASH_KEY
from ipadapter_core.file.spec import SPEC_KEY, EncoderHint
from ipadapter_core.network.adapter import build_adapter, load_adapter, save_adapter
from support.bad_files import good_tensors
from support.published import (
    PUBLISHED,
    SD15_SITES,
    meta_tensors,
    nested,
    random_tensors,
    tiny_adapter,
    write_bin,
)
from support.published import write_safetensors as write_published

Kind = Literal["base", "plus", "full"]
KINDS: tuple[Kind, ...] = ("base", "plus", "full")
HEAD_DIM_8 = {SPEC_KEY: json.dumps({"resampler": {"head_dim": 8}})}
SUPPORTED = [name for name in PUBLISHED if name.startswith("sd")]


def assert_equal(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(given) == set(wanted)
    for name, tensor in wanted.items():
        assert given[name].dtype == tensor.dtype, name
        assert torch.equal(given[name], tensor), name


@pytest.mark.parametrize("suffix", [".safetensors", ".sft"])
def test_safetensors_are_read_under_their_flat_names(tmp_path: Path, suffix: str) -> None:
    path = write_published(tmp_path / f"a{suffix}", good_tensors(), {"author": "me"})
    file = read_tensors(path)
    assert_equal(file.tensors, good_tensors())
    assert file.metadata == {"author": "me"}


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_nested_pickle_is_read_under_the_same_flat_names(tmp_path: Path, suffix: str) -> None:
    assert_equal(read_tensors(write_bin(tmp_path / f"a{suffix}", nested(good_tensors()))).tensors, good_tensors())


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("arrange", [dict, nested], ids=["flat", "nested"])
def test_both_pickle_layouts_are_read_flat_or_nested(tmp_path: Path, arrange: type[dict], as_zip: bool) -> None:
    torch.save(arrange(good_tensors()), tmp_path / "a.bin", _use_new_zipfile_serialization=as_zip)
    assert_equal(read_tensors(tmp_path / "a.bin").tensors, good_tensors())


def test_what_is_no_tensor_in_a_pickle_is_left_out(tmp_path: Path) -> None:
    torch.save({**nested(good_tensors()), "step": 3, "notes": {"by": "me"}}, tmp_path / "a.bin")
    assert_equal(read_tensors(tmp_path / "a.bin").tensors, good_tensors())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_load_save_load_keeps_spec_and_tensors(tmp_path: Path, kind: Kind, dtype: torch.dtype) -> None:
    tensors = random_tensors(tiny_adapter(kind, site_dims=(32, 64, 64)), dtype=dtype)
    first = load_adapter(write_published(tmp_path / "first.safetensors", tensors, HEAD_DIM_8))
    save_adapter(first, tmp_path / "second.safetensors")
    second = load_adapter(tmp_path / "second.safetensors")
    assert second.spec == first.spec
    assert_equal(second.state_dict(), tensors)


def test_load_save_load_keeps_what_only_metadata_tells(tmp_path: Path) -> None:
    stated = {"layer": -1, "negative": "zero_features", "encoder": {"name": "e", "image_size": 336}}
    tensors = random_tensors(tiny_adapter("plus", site_dims=(32,), head_dim=64))
    first = build_adapter(tensors, {SPEC_KEY: json.dumps(stated)})
    save_adapter(first, tmp_path / "a.safetensors", {"author": "me"})
    assert load_adapter(tmp_path / "a.safetensors").spec == first.spec
    assert first.spec.encoder == EncoderHint(name="e", image_size=336)
    assert read_tensors(tmp_path / "a.safetensors").metadata["author"] == "me"


def test_a_pickle_saved_as_safetensors_is_the_same_adapter(tmp_path: Path) -> None:
    first = load_adapter(write_bin(tmp_path / "a.bin", nested(good_tensors())))
    save_adapter(first, tmp_path / "a.safetensors")
    second = load_adapter(tmp_path / "a.safetensors")
    assert second.spec == first.spec
    assert_equal(second.state_dict(), good_tensors())


def test_an_adapter_can_be_saved_over_the_file_it_was_loaded_from(tmp_path: Path) -> None:
    path = write_published(tmp_path / "a.safetensors", good_tensors())
    adapter = load_adapter(path)
    save_adapter(adapter, path)
    assert_equal(adapter.state_dict(), good_tensors())
    assert_equal(load_adapter(path).state_dict(), good_tensors())


@pytest.mark.parametrize("name", SUPPORTED)
def test_an_adapter_has_exactly_the_published_names_and_shapes(name: str) -> None:
    published = PUBLISHED[name]()
    adapter = build_adapter(meta_tensors(published), {})
    assert {key: tuple(tensor.shape) for key, tensor in adapter.state_dict().items()} == published


def test_adapter_modules_is_saved_as_ip_adapter(tmp_path: Path) -> None:
    renamed = {name.replace("ip_adapter.", "adapter_modules."): tensor for name, tensor in good_tensors().items()}
    save_adapter(build_adapter(renamed, {}), tmp_path / "a.safetensors")
    assert_equal(read_tensors(tmp_path / "a.safetensors").tensors, good_tensors())


def test_sites_are_numbered_in_checkpoint_order() -> None:
    tensors = random_tensors(tiny_adapter("base", site_dims=(32, 64, 96)))
    adapter = build_adapter(tensors, {})
    for index in range(3):
        assert torch.equal(adapter.site(index).to_k_ip.weight, tensors[f"ip_adapter.{2 * index + 1}.to_k_ip.weight"])
        assert torch.equal(adapter.site(index).to_v_ip.weight, tensors[f"ip_adapter.{2 * index + 1}.to_v_ip.weight"])


def test_building_copies_no_tensor_and_wants_no_gradient() -> None:
    tensors = good_tensors()
    adapter = build_adapter(tensors, {})
    assert {name: p.data_ptr() for name, p in adapter.named_parameters()} == {
        name: tensor.data_ptr() for name, tensor in tensors.items()
    }
    assert not any(parameter.requires_grad for parameter in adapter.parameters())
    assert not adapter.training


def test_header_tells_shapes_without_the_data(tmp_path: Path) -> None:
    path = write_published(tmp_path / "a.safetensors", good_tensors(), {"author": "me"})
    content = path.read_bytes()
    header = read_header(path)
    assert {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"} == {
        name: tuple(tensor.shape) for name, tensor in good_tensors().items()
    }
    path.write_bytes(content[: 8 + struct.unpack("<Q", content[:8])[0]])
    assert read_header(path) == header


def test_a_header_of_any_length_is_read(tmp_path: Path) -> None:
    """The file starts with this length, whose first byte may be the first byte of a pickle."""
    for padding in range(0, 256, 8):
        path = write_published(tmp_path / "a.safetensors", good_tensors(), {"padding": "x" * padding})
        assert_equal(read_tensors(path).tensors, good_tensors())


def test_stated_hash_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, good_tensors(), {})
    digest = tensor_hash(path)
    for stated in (digest, f"0x{digest}", digest.upper()):
        write_safetensors(path, good_tensors(), {HASH_KEY: stated})
        assert_equal(read_tensors(path).tensors, good_tensors())
    write_safetensors(path, good_tensors(), {HASH_KEY: "0" * 64})
    with pytest.raises(UnreadableFileError, match="SHA-256 is not the one its metadata states"):
        read_tensors(path)


def test_a_hash_is_verified_once_per_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, good_tensors(), {})
    write_safetensors(path, good_tensors(), {HASH_KEY: tensor_hash(path)})
    hashed: list[Path] = []

    def count(file: Path) -> str:
        hashed.append(file)
        return tensor_hash(file)

    monkeypatch.setattr(container, "tensor_hash", count)
    for _ in range(3):
        load_adapter(path)
    assert hashed == [path]
    (tmp_path / "link.safetensors").symlink_to(path)
    read_tensors(tmp_path / "link.safetensors")
    assert hashed == [path], "a link is the same file"
    read_tensors(path, verify_again=True)
    assert hashed == [path] * 2


@pytest.mark.parametrize("change", ["touched", "replaced", "damaged"])
def test_another_file_of_the_same_name_is_verified(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, good_tensors(), {})
    write_safetensors(path, good_tensors(), {HASH_KEY: tensor_hash(path)})
    os.utime(path, ns=(0, 10**9))
    read_tensors(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if change == "replaced":
        (tmp_path / "new").write_bytes(content)
        (tmp_path / "new").replace(path)
    elif change == "damaged":
        path.write_bytes(content)
    else:
        path.write_bytes(content)
        os.utime(path, ns=(0, 2 * 10**9))
    with pytest.raises(UnreadableFileError, match="SHA-256"):
        read_tensors(path)


def test_site_dims_of_a_real_layout_survive_the_round_trip(tmp_path: Path) -> None:
    small = [dim // 40 for dim in SD15_SITES]
    adapter = build_adapter(random_tensors(tiny_adapter("base", site_dims=small)), {})
    save_adapter(adapter, tmp_path / "a.safetensors")
    assert load_adapter(tmp_path / "a.safetensors").spec.site_dims == tuple(small)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_copied_and_mapped_tensors_are_equal(tmp_path: Path, dtype: torch.dtype) -> None:
    numbers = torch.randint(0, 2, (5, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    tensors = {"scalar": numbers[0, 0].clone(), "many": numbers, "none": numbers[:0].clone(), "row": numbers[1].clone()}
    path = write_published(tmp_path / "a.safetensors", tensors)
    for can_map in (True, False):
        found = read_tensors(path, can_map=can_map).tensors
        assert set(found) == set(tensors)
        for name, tensor in tensors.items():
            assert found[name].dtype == dtype
            assert torch.equal(found[name].to(torch.complex64), tensor.to(torch.complex64)), name
