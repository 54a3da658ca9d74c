"""A header that is not as it was written is never believed; one without a checksum is read as it always was."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ipadapter_core.errors import UnreadableFileError
from ipadapter_core.file.container import read_tensors, write_safetensors
from ipadapter_core.file.header import HASH_KEY
from ipadapter_core.file.seal import SEAL, sealed
from ipadapter_core.file.spec import EncoderHint, Negative
from ipadapter_core.network.adapter import build_adapter, load_adapter, read_spec
from support.bad_files import good_tensors

READERS = (load_adapter, read_spec)
STRIDE = 11  # bits: each place within a byte comes equally often
SPEC = replace(
    build_adapter(good_tensors(), {}).spec, negative=Negative.NOISE, encoder=EncoderHint(name="x", crop="pad")
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sealed.safetensors"
    write_safetensors(path, good_tensors(), sealed(good_tensors(), SPEC.to_metadata()))
    return path


def with_metadata(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    """As another program would write it again."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def test_a_sealed_file_says_what_was_written(file: Path) -> None:
    assert load_adapter(file).spec == read_spec(file) == SPEC


@pytest.mark.parametrize("read", READERS)
def test_no_flipped_bit_of_a_header_is_believed(file: Path, read: Callable[[Path], object]) -> None:
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    refused = 0
    for bit in range(0, 8 * (8 + length), STRIDE):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            read(file)
        except UnreadableFileError:
            refused += 1
        else:  # the name of the checksum alone may be another: then there is none
            metadata = read_tensors(file).metadata
            del metadata[
                next(name for name in metadata if metadata[name] == sealed(good_tensors(), SPEC.to_metadata())[SEAL])
            ]
            assert metadata == {**SPEC.to_metadata(), HASH_KEY: sealed(good_tensors(), {})[HASH_KEY]}, bit
    assert refused > 8 * length / STRIDE * 0.9


@pytest.mark.parametrize("read", READERS)
def test_changed_metadata_are_named_with_what_to_do(file: Path, read: Callable[[Path], object]) -> None:
    with_metadata(
        file, lambda metadata: metadata.update({"ipadapter.spec": metadata["ipadapter.spec"].replace("pad", "center")})
    )
    with pytest.raises(UnreadableFileError, match=rf"sealed\.safetensors, whose header.*remove the entry {SEAL}"):
        read(file)
    with_metadata(file, lambda metadata: metadata.pop(SEAL))
    read(file)


def test_a_header_in_another_order_is_the_same(file: Path) -> None:
    with_metadata(
        file, lambda metadata: metadata.update({name: metadata.pop(name) for name in sorted(metadata, reverse=True)})
    )
    assert load_adapter(file).spec == SPEC


def test_data_that_have_changed_are_found_as_well(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UnreadableFileError, match="SHA-256"):
        load_adapter(file)
