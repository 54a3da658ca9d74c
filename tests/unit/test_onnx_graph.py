"""ONNX networks that may never end are told from their bytes, before a program that runs them sees them."""

import random
from pathlib import Path
from typing import Any

import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import helper

from ipadapter_core.errors import UnreadableFileError
from ipadapter_core.file.onnx_graph import check_network
from support import face_files
from support.hostile import changed_bytes
from support.hostile_onnx import branching, doubling, looping


@pytest.fixture
def network(tmp_path: Path) -> Any:
    face_files.write_detector(tmp_path / "a.onnx")
    return onnx.load(tmp_path / "a.onnx")


def write(path: Path, network: Any) -> Path:
    path.write_bytes(network if isinstance(network, bytes) else network.SerializeToString())
    return path


def test_networks_of_a_face_pack_end(tmp_path: Path, network: Any) -> None:
    for file in face_files.write_pack(tmp_path / "pack").iterdir():
        check_network(file)
    check_network(write(tmp_path / "a.onnx", branching(network, [])))


def in_a_branch(network: Any) -> Any:
    loop = helper.make_node("Loop", ["choice", "choice"], [], body=helper.make_graph([], "x", [], []))
    return branching(network, [loop])


def scanning(network: Any) -> Any:
    network.graph.node.append(helper.make_node("Scan", [], [], body=helper.make_graph([], "x", [], [])))
    return network


LOOPS = {"loop": looping, "in a branch": in_a_branch, "scan": scanning, "functions": doubling}


@pytest.mark.parametrize("kind", LOOPS)
def test_what_may_never_end_is_refused(tmp_path: Path, network: Any, kind: str) -> None:
    file = write(tmp_path / "a.onnx", LOOPS[kind](network))
    wanted = {"scan": r"a loop \(Scan\)", "functions": "functions of its own"}.get(kind, r"a loop \(Loop\)")
    with pytest.raises(
        UnreadableFileError, match=rf"a\.onnx, a network with {wanted}, which may never end.*take this file"
    ):
        check_network(file)


def test_a_loop_in_a_second_graph_is_seen(tmp_path: Path, network: Any) -> None:
    """Protobuf joins what stands in a file twice."""
    more = looping(onnx.load(tmp_path / "a.onnx"))
    with pytest.raises(UnreadableFileError, match="a loop"):
        check_network(write(tmp_path / "b.onnx", network.SerializeToString() + more.SerializeToString()))


def nested(levels: int) -> bytes:
    """Graphs in attributes of nodes."""
    content = b""
    for _ in range(levels):
        for key in (0x32, 0x2A, 0x0A):  # attribute.g, node.attribute, graph.node
            content = bytes((key,)) + number(len(content)) + content
    return b"\x3a" + number(len(content)) + content


def number(value: int) -> bytes:
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*digits, value))


BROKEN = {
    "empty": b"",
    "text": b"not a network",
    "cut off": b"\x3a\x7f\x0a",
    "a group": b"\x3b\x3c",
    "an endless number": b"\xff" * 40,
    "a key of five bytes": b"\xba\x80\x80\x80\x10\x00",  # 7 and a bit that protobuf forgets
    "a length beyond": b"\x3a" + b"\xff" * 9 + b"\x01",
    "a number cut off": b"\x0d\x01",
    "very deep": nested(60),
    "very many fields": b"\x08\x01" * 1_000_001,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_network_is_a_message(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UnreadableFileError, match="no usable face model file: no ONNX network"):
        check_network(write(tmp_path / "a.onnx", BROKEN[kind]))


def test_some_depth_is_read(tmp_path: Path) -> None:
    check_network(write(tmp_path / "a.onnx", nested(10)))


def test_a_file_that_is_not_there_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="no file at"):
        check_network(tmp_path / "gone.onnx")


def test_no_damage_hides_a_loop_that_protobuf_still_reads(tmp_path: Path, network: Any) -> None:
    """Whatever bytes are changed: if ONNX finds a loop, so does the check, or it refuses the file."""
    content, draw, missed, seen = looping(network).SerializeToString(), random.Random(0), [], 0
    for case in range(1500):
        changed = changed_bytes(draw, content)
        try:
            operations = {node.op_type for node in onnx.load_from_string(changed).graph.node}
        except (DecodeError, ValueError):
            continue
        if "Loop" not in operations:
            continue
        seen += 1
        try:
            check_network(write(tmp_path / "b.onnx", changed))
            missed.append(case)
        except UnreadableFileError:
            pass
    assert seen > 300
    assert missed == []
