"""A face pack in miniature: ONNX files of SCRFD's and ArcFace's signature that find coloured squares.

Red squares are small faces found at stride 8, green ones larger faces at stride 16. Landmarks lie on ArcFace's template,
turned to one side. The embedding is a random projection of the aligned picture.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

STRIDES, ANCHORS = (8, 16, 32), 2
EMBEDDING = 512
RED, GREEN = (255, 0, 0), (0, 255, 0)
HALF_SIDES = {8: 4.0, 16: 4.0, 32: 4.0}  # of a box, in strides
SCORES = {8: 0.95, 16: 0.85}  # of a cell in full colour
# Landmarks of an upright face in an aligned picture, as the ArcFace paper's authors publish them.
_UPRIGHT = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
_OPSET = 13


def landmarks(stride: int) -> np.ndarray:
    """(5, 2): x and y in strides, around the middle of a face."""
    angle = 0.2
    turn = np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    return (_UPRIGHT - 56) / 112 * 2 * HALF_SIDES[stride] @ turn.T


def write_pack(folder: Path, embedding: int = EMBEDDING) -> Path:
    """Detector, recogniser and, as in published packs, a network that is neither."""
    folder.mkdir(parents=True, exist_ok=True)
    write_detector(folder / "det_tiny.onnx")
    write_recogniser(folder / "w_tiny.onnx", embedding)
    _save(folder / "2d106.onnx", _flat("landmarks", 192, 212), (1, 3, 192, 192), {"landmarks": (1, 212)})
    return folder


def write_detector(path: Path, side: int | str = "?") -> None:
    """SCRFD's signature; `side` fixes the size of the input."""
    nodes, weights, outputs = [], [], {"score": {}, "box": {}, "points": {}}
    for stride in STRIDES:
        logit = np.log(SCORES.get(stride, 0.6) / (1 - SCORES.get(stride, 0.6)))
        # a cell that is red (or green) all over has the sum 3 after normalising
        colour = {8: (1.0, -1.0, -1.0), 16: (-1.0, 1.0, -1.0)}.get(stride, (0.0, 0.0, 0.0))
        gain = 40.0
        bias = logit - gain * 3 * (127.5 / 128) if stride in SCORES else -50.0
        heads = {
            "score": (np.tile(gain * np.array(colour), (ANCHORS, 1)), np.array((bias, bias - 0.5))),
            "box": (np.zeros((4 * ANCHORS, 3)), np.full(4 * ANCHORS, HALF_SIDES[stride])),
            "points": (np.zeros((10 * ANCHORS, 3)), np.tile(landmarks(stride).reshape(-1), ANCHORS)),
        }
        nodes.append(
            helper.make_node(
                "AveragePool", ["input"], [f"cells{stride}"], kernel_shape=[stride] * 2, strides=[stride] * 2
            )
        )
        for name, (weight, shift) in heads.items():
            key, width = f"{name}{stride}", len(shift) // ANCHORS
            weights += [
                _tensor(f"{key}.weight", weight[..., None, None]),
                _tensor(f"{key}.bias", shift),
                numpy_helper.from_array(np.array((-1, width), dtype=np.int64), f"{key}.shape"),
            ]
            last = f"{key}.map"
            nodes.append(helper.make_node("Conv", [f"cells{stride}", f"{key}.weight", f"{key}.bias"], [last]))
            if name == "score":
                nodes.append(helper.make_node("Sigmoid", [last], [f"{key}.sigmoid"]))
                last = f"{key}.sigmoid"
            nodes.append(helper.make_node("Transpose", [last], [f"{key}.rows"], perm=[0, 2, 3, 1]))
            nodes.append(helper.make_node("Reshape", [f"{key}.rows", f"{key}.shape"], [key]))
            outputs[name][key] = ("n" + key, width)
    ordered = {key: shape for part in outputs.values() for key, shape in part.items()}
    _save(path, (nodes, weights), (1, 3, side, side), ordered)


def write_recogniser(path: Path, embedding: int = EMBEDDING) -> None:
    """ArcFace's signature."""
    _save(path, _flat("embedding", 112, embedding), ("None", 3, 112, 112), {"embedding": ("None", embedding)})


def picture(*squares: tuple[tuple[int, int, int], int, int, int], size: tuple[int, int] = (320, 320)) -> Tensor:
    """An IMAGE (1, H, W, 3) on a grey ground with some texture.

    Args:
        squares: colour, left, top and side in pixels of a face, brightest in its middle.
        size: height and width.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(90, 130, (*size, 3), generator=generator)
    for colour, left, top, side in squares:
        steps = torch.arange(side) + 0.5 - side / 2
        bright = 1 - (steps[:, None].square() + steps.square()).sqrt() / 255  # so that no two places are equally likely
        pixels[top : top + side, left : left + side] = (bright[..., None] * torch.tensor(colour)).round().long()
    return pixels.float()[None] / 255


def _flat(output: str, side: int, width: int) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    cells = side // 14
    matrix = np.random.default_rng(0).standard_normal((3 * cells**2, width)) * 0.1
    nodes = [
        helper.make_node("AveragePool", ["input"], ["cells"], kernel_shape=[14, 14], strides=[14, 14]),
        helper.make_node("Flatten", ["cells"], ["row"]),
        helper.make_node("MatMul", ["row", "matrix"], [output]),
    ]
    return nodes, [_tensor("matrix", matrix)]


def _tensor(name: str, values: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=np.float32), name)


def _save(
    path: Path,
    graph: tuple[list[onnx.NodeProto], list[TensorProto]],
    shape: tuple[int | str, ...],
    outputs: dict[str, tuple[int | str, ...]],
) -> None:
    nodes, weights = graph
    model = helper.make_model(
        helper.make_graph(
            nodes,
            path.stem,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in outputs.items()],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
