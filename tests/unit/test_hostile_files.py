"""Files that were made to break a reader: each kind has its message, and a good neighbour is read as before."""

import collections
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from ipadapter_core.encoder.known import read_encoder_file
from ipadapter_core.errors import IPAdapterError, UnreadableFileError
from ipadapter_core.file import container, remote
from ipadapter_core.file.container import read_header, read_tensors
from ipadapter_core.file.holes import bytes_in_holes
from ipadapter_core.file.spec import SPEC_KEY
from ipadapter_core.legacy.embeds import read_embeds
from ipadapter_core.network.adapter import load_adapter, read_spec
from support import hostile_pickles as pickles
from support.bad_files import good_tensors
from support.hostile import DIGITS, Raw, json_text
from support.hostile_safetensors import put_together, safetensors_bytes, taken_apart
from support.published import write_safetensors
from support.unreadable import no_waiting  # noqa: F401

RUNS_CODE = "asks to run code or to build foreign objects"
NAME = "image_proj.proj.weight"
DEEP = Raw("[" * 10_000 + "]" * 10_000)


def with_entry(**changes: object) -> bytes:
    header, data = taken_apart(safetensors_bytes(good_tensors()))
    header[NAME].update(changes)
    return put_together(header, data)


def renamed(name: str) -> bytes:
    header, data = taken_apart(safetensors_bytes(good_tensors()))
    return put_together({name if old == NAME else old: entry for old, entry in header.items()}, data)


def stating(value: object) -> bytes:
    header, data = taken_apart(safetensors_bytes(good_tensors()))
    text = value if isinstance(value, str) and not isinstance(value, Raw) else json_text(value)
    return put_together({**header, "__metadata__": {SPEC_KEY: text}}, data)


def offsets(change: Callable[[int, int], list[int]]) -> bytes:
    header, _ = taken_apart(safetensors_bytes(good_tensors()))
    return with_entry(data_offsets=change(*header[NAME]["data_offsets"]))


HEADERS: dict[str, tuple[bytes, str]] = {
    "shape of text": (with_entry(shape="768"), f"a header whose {NAME} has the shape '768'"),
    "shape of texts": (with_entry(shape=["64", 24]), f"a header whose {NAME} has the shape ['64', 24]"),
    "shape of lists": (with_entry(shape=[[64], 24]), f"a header whose {NAME} has the shape [[64], 24]"),
    "shape of truths": (with_entry(shape=[True, 24]), "has the shape [True, 24]"),
    "shape with a negative size": (with_entry(shape=[-64, -24]), "has the shape [-64, -24]"),
    "shape with a huge size": (with_entry(shape=[2**62, 24]), "has the shape [4611686018427387904, 24]"),
    "shape of another length": (with_entry(shape=[64, 25]), "of shape [64, 25] has 6144 bytes of data"),
    "empty shape of huge sizes": (with_entry(shape=[2**40, 2**40, 0]), "of shape [1099511627776, 1099511627776, 0]"),
    "no shape": (with_entry(shape=None), "has the shape None"),
    "number of 5,000 digits": (with_entry(shape=Raw(f"[{DIGITS}, 24]")), "a number of 5000 digits"),
    "nested 10,000 deep": (with_entry(shape=DEEP), "nested"),
    "dtype that is a list": (with_entry(dtype=["F32"]), f"{NAME} has no dtype"),
    "unknown dtype": (with_entry(dtype="F7"), "a broken safetensors file"),
    "dtype of six bits": (with_entry(dtype="F6_E2M3"), "a broken safetensors file"),
    "offsets reversed": (offsets(lambda start, stop: [stop, start]), "has the data_offsets ["),
    "offsets overlapping": (offsets(lambda start, stop: [start - 2, stop - 2]), "a header whose data_offsets of"),
    "offsets with a gap": (offsets(lambda start, stop: [start + 2, stop + 2]), "a header whose data_offsets of"),
    "offsets of another length": (offsets(lambda start, stop: [start, stop + 2]), "bytes of data"),
    "three offsets": (offsets(lambda start, stop: [start, stop, stop]), "has the data_offsets ["),
    "entry that is a number": (put_together({NAME: 3}, b""), f"a header whose {NAME} has no dtype"),
    "header that is a list": (put_together([1, 2], b""), "a header that is not a JSON object"),
    "metadata that is a list": (put_together({"__metadata__": [1]}, b""), "whose __metadata__ is not an object"),
    "name with NUL": (renamed("a\0b"), r"a tensor with the name 'a\x00b'"),
    "name that is half a character": (renamed("\ud800"), "a header that is not JSON"),
    "name of a terminal's commands": (renamed("\x1b[2J"), r"a tensor with the name '\x1b[2J'"),
    "name that turns the line": (renamed("\u202eabc"), r"a tensor with the name '\u202eabc'"),
    "name of 100,000 characters": (renamed("x" * 100_000), "a tensor whose name has 100000 characters"),
    "number of 5,000 digits in a name": (
        renamed(f"ip_adapter.{DIGITS}.to_k_ip.weight"),
        "whose name has 5026 characters",
    ),
    "the same name twice": (renamed("image_proj.norm.bias#"), "the name 'image_proj.norm.bias' twice"),
    "spec nested 10,000 deep": (stating(DEEP), "nested"),
    "spec with 5,000 digits": (stating({"layer": Raw(DIGITS)}), "a number of 5000 digits"),
    "spec with a true layer": (stating({"layer": True}), "has layer True"),
    "spec with a layer far below": (stating({"layer": -(10**9)}), "has layer -1000000000"),
    "spec with a list as feature": (stating({"feature": []}), "a value nobody knows"),
    "spec with a feature nothing reads": (stating({"feature": "hidden_states"}), "has feature hidden_states, which"),
    "spec with a negative picture": (stating({"encoder": {"image_size": -3}}), "not a name and an image_size"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_is_refused_for_what_it_says(tmp_path: Path, name: str) -> None:
    content, phrase = HEADERS[name]
    (tmp_path / "a.safetensors").write_bytes(content)
    assert phrase in message(load_adapter, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "name", [name for name in HEADERS if "dtype of six" not in name and "unknown dtype" not in name]
)
def test_recognising_and_loading_a_file_say_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(HEADERS[name][0])
    assert message(read_spec, tmp_path / "a.safetensors") == message(load_adapter, tmp_path / "a.safetensors")


def called(function: str, argument: bytes) -> bytes:
    return pickles.with_index(pickles.called(function, argument + b"\x85"))


TENSORS = {"a": torch.arange(100.0), "b": torch.ones(3)}
PICKLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "tuples that take years to hash": (lambda: pickles.with_index(pickles.laughs(60)), "tuples in tuples"),
    "the same, in the older form": (lambda: pickles.laughs(60), "tuples in tuples"),
    "tuples 100,000 deep": (lambda: pickles.with_index(pickles.deep(b")", b"\x85", 100_000)), "tuples in tuples"),
    "lists 100,000 deep": (lambda: pickles.with_index(pickles.deep(b"]", b"a", 100_000)), "a.bin"),
    "dictionaries 10,000 deep": (
        lambda: pickles.with_index(pickles.deep_dicts(10_000)),
        "dictionaries that hold themselves",
    ),
    "dictionaries that share": (lambda: pickles.with_index(pickles.shared_dicts(60)), "more than 100000 entries"),
    "a dictionary in itself": (lambda: pickles.with_index(b"\x80\x02}q\0X\x01\0\0\0ah\0s."), "hold themselves"),
    "three million steps": (
        lambda: pickles.with_index(b"\x80\x02" + b"](e" * 1_000_000 + b"."),
        "more than 2000000 steps",
    ),
    "a text of 4 GB": (lambda: pickles.with_index(b"\x80\x02X\xff\xff\xff\xffa."), "a text of 4294967295 bytes"),
    "names that collide": (
        lambda: pickles.with_index(b"\x80\x02}" + pickles.long_number(2**61 - 1) + b"K\x01s."),
        "a name that is",
    ),
    "a petabyte of bytes": (lambda: called("builtins bytearray", pickles.long_number(10**15)), RUNS_CODE),
    "a tensor of a terabyte": (lambda: called("torch FloatTensor", pickles.long_number(10**12)), RUNS_CODE),
    "bare memory": (lambda: called("torch UntypedStorage", pickles.long_number(10**12)), RUNS_CODE),
    "a codec of square time": (
        lambda: pickles.with_index(pickles.called("_codecs encode", b"X\x01\0\0\0aX\x04\0\0\0idna\x86")),
        RUNS_CODE,
    ),
    "a system call": (lambda: called("os system", b"X\x04\0\0\0true"), RUNS_CODE),
    "a tensor without numbers": (lambda: pickles.zip_bytes({"a": torch.ones(3, device="meta")}), RUNS_CODE),
    "a sparse tensor": (lambda: pickles.zip_bytes({"a": torch.ones(3).to_sparse()}), RUNS_CODE),
    "a quantised tensor": (
        lambda: pickles.zip_bytes({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}),
        RUNS_CODE,
    ),
    "float8 scales": (
        lambda: pickles.zip_bytes({"a": torch.ones(3).to(torch.float8_e8m0fnu)}),
        "a tensor of torch.float8_e8m0fnu",
    ),
    "one number as a billion": (lambda: pickles.zip_bytes({"a": torch.ones(1).expand(10**9)}), "has 4 bytes of data"),
    "a thousand views of one": (
        lambda: pickles.zip_bytes(pickles.shared(1000, torch.ones(10_000))),
        "bytes of tensors in a file",
    ),
    "data shorter than is said": (
        lambda: pickles.lying_storage(2**31, {"a": torch.arange(100.0)}),
        "a tensor of 8589934592 bytes",
    ),
    "less than no data": (lambda: pickles.lying_storage(-5, {"a": torch.arange(100.0)}), "length -5"),
    "a packed archive": (lambda: pickles.zipped(pickles.members_of(TENSORS), 8), "is compressed"),
    "a member twice": (lambda: pickles.zipped(pickles.members_of(TENSORS) * 2), "twice"),
    "a name with NUL": (lambda: pickles.zip_bytes({"a\0b": torch.ones(3)}), r"the name 'a\x00b'"),
}


@pytest.mark.filterwarnings("ignore")  # torch comments on what it meets
@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_refused_for_what_it_would_build(tmp_path: Path, name: str) -> None:
    make, phrase = PICKLES[name]
    (tmp_path / "a.bin").write_bytes(make())
    assert phrase in message(read_tensors, tmp_path / "a.bin")


def test_embeds_without_numbers_are_refused(tmp_path: Path) -> None:
    torch.save(torch.ones(1, 4, device="meta"), tmp_path / "a.ipadpt")
    assert RUNS_CODE in message(read_embeds, tmp_path / "a.ipadpt")


def sparse(path: Path, header: Mapping[str, Any], size: int) -> Path:
    path.write_bytes(put_together(header, b""))
    os.truncate(path, size)
    return path


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="asks the file system for holes")
@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("name", ["a.safetensors", "a.bin", "all of it.bin"])
def test_a_sparse_file_of_100_gigabytes_is_not_read(tmp_path: Path, name: str) -> None:
    size = 100 << 30
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    path = sparse(tmp_path / name, {"a": entry}, size)
    if name == "a.bin":
        path.write_bytes(b"\x80\x02")
        os.truncate(path, size)
    elif name == "all of it.bin":
        path.write_bytes(b"")
        os.truncate(path, size)
    assert "of its bytes are holes, not on the disk" in message(read_tensors, path)


@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="asks the file system for holes")
def test_small_holes_are_what_copying_leaves(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(1 << 20), "b": torch.ones(4)}
    path = write_safetensors(tmp_path / "a.safetensors", tensors)
    assert bytes_in_holes(path) == 0
    header, data = taken_apart(path.read_bytes())
    start = len(put_together(header, b""))
    path.unlink()
    sparse(path, header, start + len(data))
    with path.open("r+b") as file:
        file.seek(start + header["b"]["data_offsets"][0])
        file.write(data[slice(*header["b"]["data_offsets"])])
    assert bytes_in_holes(path) > 1 << 20
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in read_tensors(path).tensors.items())


MOUNTS = """21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
31 30 8:17 / /models/local rw - xfs /dev/sdb1 rw
30 21 0:40 / /models rw shared:3 - nfs4 server:/models rw
32 21 0:41 / /my\\040share rw - cifs //server/x rw
33 21 0:42 / /drive rw - fuse.rclone remote: rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/a.bin", "ext4"),
        ("/models/a.bin", "nfs4"),
        ("/models2/a.bin", "ext4"),
        ("/models/local/a.bin", "xfs"),
        ("/my share/a.bin", "cifs"),
        ("/drive/a/b.bin", "fuse.rclone"),
    ],
)
def test_a_share_is_known_by_its_mount(path: str, kind: str) -> None:
    assert remote.mount_kind(path, MOUNTS) == kind


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_what_lies_on_a_share_is_copied_and_that_is_said(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"a{suffix}"
    write_safetensors(path, good_tensors()) if suffix != ".bin" else torch.save(good_tensors(), path)
    here, share = tmp_path / "here", tmp_path / "share"
    here.write_text(MOUNTS)
    share.write_text(f"{MOUNTS}34 21 0:43 / {tmp_path.resolve()} rw - nfs server:/x rw\n")
    for mounts, is_mapped in ((here, True), (share, False)):
        monkeypatch.setattr(remote, "_MOUNTS", mounts)
        with caplog.at_level("INFO"):
            found = read_tensors(path).tensors
        assert (str(path.resolve()) in Path("/proc/self/maps").read_text()) == is_mapped
        assert ("lies on a network share (nfs)" in caplog.text) != is_mapped
        assert found.keys() == good_tensors().keys()
        del found


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_safetensors(tmp_path / "a.safetensors", good_tensors())
    really = container.safe_open

    def replaced_meanwhile(*arguments: Any, **options: Any) -> Any:
        opened = really(*arguments, **options)
        write_safetensors(tmp_path / "new", good_tensors(), {"another": "file"})
        (tmp_path / "new").replace(path)
        return opened

    monkeypatch.setattr(container, "safe_open", replaced_meanwhile)
    assert "changed while it was read" in message(read_tensors, path)


def test_attributes_a_pickle_gives_its_objects_are_not_looked_at(tmp_path: Path) -> None:
    content: Any = collections.OrderedDict(good_tensors())
    content[NAME] = torch.nn.Parameter(content[NAME])
    content.__dict__["itemz"] = content[NAME].__dict__["izfinite"] = 3
    members = [
        (name, part.replace(b"itemz", b"items").replace(b"izf", b"isf")) for name, part in pickles.members_of(content)
    ]
    (tmp_path / "a.bin").write_bytes(pickles.zipped(members))
    with pytest.raises(TypeError, match="'int' object is not callable"):
        torch.load(tmp_path / "a.bin", weights_only=True).items()
    found = read_tensors(tmp_path / "a.bin").tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in good_tensors().items())
    assert found[NAME].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in good_tensors().items()}
    torch.save(tensors, tmp_path / "a.bin")
    write_safetensors(tmp_path / "a.safetensors", tensors)
    for path in (tmp_path / "a.bin", tmp_path / "a.safetensors"):
        found = read_tensors(path).tensors
        assert {name: tensor.float().tolist() for name, tensor in found.items()} == {
            name: tensor.float().tolist() for name, tensor in tensors.items()
        }


def test_an_encoder_with_sizes_missing_is_refused(tmp_path: Path) -> None:
    for number, shapes in enumerate(
        ({"visual.positional_embedding": (5,)}, {"visual.positional_embedding": (5, 8), "visual.proj": (3,)})
    ):
        tensors = {"visual.transformer.resblocks.0.attn.in_proj_weight": torch.ones(3, 1)}
        tensors |= {name: torch.ones(shape) for name, shape in shapes.items()}
        path = write_safetensors(tmp_path / f"{number}.safetensors", tensors)
        assert "an image encoder whose visual.p" in message(read_encoder_file, path)


def message(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(IPAdapterError) as caught:
        read(path)
    text = str(caught.value)
    assert " Expected: " in text
    assert " What to do: " in text
    assert isinstance(caught.value, UnreadableFileError)
    return text


def test_a_header_longer_than_its_file_is_read_no_further(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 2**63) + b'{"a":{}}')
    assert "a header of 9223372036854775808 bytes" in message(read_header, tmp_path / "a.safetensors")
