"""Mutated face packs: ONNX networks whose bytes, sizes, nodes, inputs and outputs are not what they should be."""

import random
import tempfile
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from . import face_files
from .hostile import PLACES, changed_bytes, early

_SIZES = (0, 1, 3, 5, 7, 112, 640, 2**20, 2**40, -1)
_KINDS = ("Add", "Relu", "Loop", "If", "Reshape", "NoSuchNode", "Identity", "Tile", "Expand", "ConstantOfShape")


@lru_cache
def _good() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as place:
        return {path.name: path.read_bytes() for path in face_files.write_pack(Path(place)).iterdir()}


def write_mutated(draw: random.Random, folder: Path) -> str:
    """Write a face pack with one damaged file; returns what was done to it."""
    folder.mkdir()
    for name, content in _good().items():
        (folder / name).write_bytes(content)
    name = draw.choice(list(MUTATIONS))
    MUTATIONS[name](draw, folder / draw.choice(("det_tiny.onnx", "w_tiny.onnx", "w_tiny.onnx", "2d106.onnx")))
    return name


def _bytes(draw: random.Random, path: Path) -> None:
    path.write_bytes(draw.choice((changed_bytes, early))(draw, path.read_bytes()))


def _place(draw: random.Random, path: Path) -> None:
    path.unlink()
    if draw.random() < 0.8:
        draw.choice(PLACES[:-1])(path)


def _network(draw: random.Random, path: Path) -> None:
    model = onnx.load(path)
    for _ in range(draw.choice((1, 1, 2, 4))):
        draw.choice(_CHANGES)(draw, model)
    path.write_bytes(model.SerializeToString())


def _boundary(draw: random.Random, model: Any) -> None:
    value = draw.choice([*model.graph.input, *model.graph.output])
    shape = value.type.tensor_type.shape
    if draw.random() < 0.3:
        value.type.tensor_type.elem_type = draw.choice((TensorProto.INT64, TensorProto.STRING, TensorProto.FLOAT16, 99))
    elif shape.dim and draw.random() < 0.7:
        draw.choice(shape.dim).dim_value = draw.choice(_SIZES)
    elif draw.random() < 0.5:
        del shape.dim[draw.randrange(len(shape.dim) + 1) :]
    else:
        shape.dim.add().dim_value = draw.choice(_SIZES)


def _ends(draw: random.Random, model: Any) -> None:
    part = draw.choice((model.graph.input, model.graph.output))
    change = draw.randrange(3)
    if change == 0 and part:
        del part[draw.randrange(len(part))]
    elif change == 1:
        part.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [draw.choice(_SIZES)]))
    elif part:
        draw.choice(part).name = draw.choice(("", "input", "embedding", "\0", "x" * 10_000))


def _weights(draw: random.Random, model: Any) -> None:
    if not model.graph.initializer:
        return
    weight = draw.choice(model.graph.initializer)
    change = draw.randrange(4)
    if change == 0:
        weight.dims[:] = [draw.choice(_SIZES) for _ in range(draw.randrange(5))]
    elif change == 1:
        weight.data_type = draw.choice((TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING, 77))
    elif change == 2:
        weight.raw_data = changed_bytes(draw, weight.raw_data)
    else:
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (
            ("location", draw.choice(("../../x", "/etc/passwd", "gone", "w_tiny.onnx"))),
            ("length", "99999999999"),
        ):
            entry = weight.external_data.add()
            entry.key, entry.value = key, value


def _nodes(draw: random.Random, model: Any) -> None:
    if not model.graph.node:
        return
    node = draw.choice(model.graph.node)
    change = draw.randrange(6)
    if change == 0:
        node.op_type = draw.choice(_KINDS)
    elif change == 1:
        model.graph.node.remove(node)
    elif change == 2 and node.attribute:
        attribute = draw.choice(node.attribute)
        attribute.i = draw.choice(_SIZES)
        attribute.ints[:] = [draw.choice(_SIZES) for _ in attribute.ints]
    elif change == 3 and node.input:
        node.input[draw.randrange(len(node.input))] = draw.choice(("", "input", "nothing", node.output[0]))
    elif change == 4:
        node.domain = draw.choice(("com.microsoft", "evil", "ai.onnx.ml"))
    else:
        model.graph.node.append(node)


def looping(network: Any, times: int = 2**62) -> Any:
    """The same network, behind a loop that adds zero to its input again and again."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go on"], ["goes on"]), helper.make_node("Add", ["sum", "zero"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("goes on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, []),
        ],
        [helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0])],
    )
    for node in network.graph.node:
        node.input[:] = ["looped" if name == "input" else name for name in node.input]
    constants = (
        ("times", TensorProto.INT64, times),
        ("yes", TensorProto.BOOL, True),
        ("start", TensorProto.FLOAT, 0.0),
    )
    network.graph.initializer.extend(helper.make_tensor(name, kind, [], [value]) for name, kind, value in constants)
    nodes = [
        helper.make_node("Loop", ["times", "yes", "start"], ["added"], body=body),
        helper.make_node("Add", ["input", "added"], ["looped"]),
        *network.graph.node,
    ]
    del network.graph.node[:]
    network.graph.node.extend(nodes)
    return network


def branching(network: Any, branch: Any) -> Any:
    """The network, with an operation that chooses between two graphs, both of them `branch`."""
    yes = helper.make_tensor("choice", TensorProto.BOOL, [], [True])
    network.graph.initializer.append(yes)
    output = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, [])
    graph = helper.make_graph(
        [*branch, helper.make_node("Constant", [], ["chosen"], value_float=0.0)], "x", [], [output]
    )
    choice = helper.make_node("If", ["choice"], ["unused"], then_branch=graph, else_branch=graph)
    network.graph.node.append(choice)
    return network


def doubling(network: Any, deep: int = 40) -> Any:
    """The network, with functions that call each other twice."""
    for number in range(deep):
        called = ("own", f"f{number + 1}") if number < deep - 1 else ("", "Relu")
        steps = [helper.make_node(called[1], [one], [two], domain=called[0]) for one, two in (("x", "a"), ("a", "y"))]
        imports = [helper.make_opsetid("", 13), helper.make_opsetid("own", 1)]
        network.functions.append(helper.make_function("own", f"f{number}", ["x"], ["y"], steps, imports))
    for node in network.graph.node:
        node.input[:] = ["called" if name == "input" else name for name in node.input]
    network.graph.node.insert(0, helper.make_node("f0", ["input"], ["called"], domain="own"))
    network.opset_import.append(helper.make_opsetid("own", 1))
    return network


def _endless(draw: random.Random, path: Path) -> None:
    model = onnx.load(path)
    model.ir_version = 8
    draw.choice((looping, doubling))(model)
    if draw.random() < 0.5:
        _nodes(draw, model)
    path.write_bytes(draw.choice((bytes, bytes, partial(changed_bytes, draw)))(model.SerializeToString()))


def _versions(draw: random.Random, model: Any) -> None:
    model.ir_version = draw.choice((0, 1, 8, 99))
    for opset in model.opset_import:
        opset.version = draw.choice((0, 1, 13, 99))


_CHANGES: tuple[Callable[[random.Random, Any], None], ...] = (_boundary, _ends, _weights, _nodes, _versions)
MUTATIONS: dict[str, Callable[[random.Random, Path], None]] = {
    "bytes": _bytes,
    "place": _place,
    "network": _network,
    "network again": _network,
    "endless": _endless,
}
