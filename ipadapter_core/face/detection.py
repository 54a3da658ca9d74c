"""Faces in a picture: what SCRFD (arXiv 2105.04714) reads and gives, and the choice among the faces it found."""

# H W size of the picture, S side of the detector's square input, A anchors of one stride

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BadInputError, one_of

DETECTION_SIZES = (640, 576, 512, 448, 384, 320)  # pixels; tried in this order until a face is found
FACE_CHOICES = ("largest", "first", "all")
_STRIDES = (8, 16, 32)  # pixels between the places where a face may be
_SCORE, _BOX, _LANDMARKS = 1, 4, 10  # numbers per anchor
_MEAN, _STD = 127.5, 128.0
_LEAST_SCORE, _MOST_OVERLAP = 0.5, 0.4
_LONGEST = 64  # times the short side: of the largest size that a detector looks at, ten pixels


@dataclass(frozen=True, eq=False)
class Face:
    """A face found in a picture.

    Attributes:
        box: (4,), left, top, right and bottom in pixels.
        landmarks: (5, 2), x and y in pixels: eyes, nose, corners of the mouth, left first.
        score: 0..1.
        embedding: (I,), as the recognition network gives it.
    """

    box: Tensor
    landmarks: Tensor
    score: float
    embedding: Tensor

    @property
    def area(self) -> float:
        """In square pixels."""
        left, top, right, bottom = (float(edge) for edge in self.box)
        return (right - left) * (bottom - top)

    @property
    def normed_embedding(self) -> Tensor:
        """Of length 1."""
        return torch.nn.functional.normalize(self.embedding, dim=0)


@dataclass(frozen=True, eq=False)
class Detections:
    """Faces by falling score: boxes (F, 4), landmarks (F, 5, 2), in pixels of the picture, and scores (F,)."""

    boxes: Tensor
    landmarks: Tensor
    scores: Tensor


def check_proportions(pictures: Tensor) -> None:
    """Of pictures (B, H, W, 3).

    Raises:
        BadInputError: strips, which a detector would shrink to nothing.
    """
    height, width = pictures.shape[1:3]
    if max(height, width) > _LONGEST * min(height, width):
        raise BadInputError(
            f"a strip of {width} x {height} pixels, in which no face can be",
            expected=f"a picture with a face, at most {_LONGEST} times as long as wide",
            action="connect the picture itself, or crop it around the face",
        )


def detector_input(picture: Tensor, size: int) -> tuple[Tensor, float]:
    """A picture in the upper left of a black square, as SCRFD reads it, and by how much it was scaled.

    Args:
        picture: (H, W, 3), uint8, RGB.

    Returns:
        (1, 3, S, S), float32, RGB.
    """
    height, width = picture.shape[:2]
    target = (size, size * width // height) if height > width else (size * height // width, size)
    target = (max(target[0], 1), max(target[1], 1))
    planes = picture.movedim(-1, 0)[None].float()
    small = functional.interpolate(planes, size=target, mode="bilinear", align_corners=False).round().clamp(0, 255)
    square = functional.pad(small, (0, size - target[1], 0, size - target[0]))
    return (square - _MEAN) / _STD, target[0] / height


def read_detections(outputs: Sequence[Tensor], size: int, scale: float) -> Detections:
    """What a SCRFD network gives for `detector_input`, as faces; those that lie over a better one are left out.

    Args:
        outputs: scores (A, 1), boxes (A, 4) and landmarks (A, 10) of every stride, in any order; a leading 1 is allowed.
        scale: as `detector_input` gave it.

    Raises:
        BadInputError: a network with other outputs.
    """
    parts = {
        width: sorted((out.reshape(-1, width) for out in outputs if out.shape[-1] == width), key=len, reverse=True)
        for width in (_SCORE, _BOX, _LANDMARKS)
    }
    cells = [(size // stride) ** 2 for stride in _STRIDES]
    if any(
        len(part) != len(cells) or any(len(rows) % count for rows, count in zip(part, cells, strict=True))
        for part in parts.values()
    ):
        raise BadInputError(
            f"a face detector with outputs of shapes {[list(out.shape) for out in outputs]}",
            expected="a SCRFD network with landmarks: scores, boxes and landmarks at strides 8, 16 and 32",
            action="use det_10g.onnx of buffalo_l or scrfd_10g_bnkps.onnx of antelopev2",
        )
    boxes, landmarks, scores = [], [], []
    for stride, score, box, points in zip(_STRIDES, *parts.values(), strict=True):
        centres = _centres(size // stride, stride, len(score))
        likely = score[:, 0] >= _LEAST_SCORE
        centre, box = centres[likely], stride * box[likely]
        boxes.append(torch.cat((centre - box[:, :2], centre + box[:, 2:]), dim=1))
        landmarks.append(centre[:, None] + stride * points[likely].reshape(-1, 5, 2))
        scores.append(score[likely, 0])
    found = Detections(torch.cat(boxes) / scale, torch.cat(landmarks) / scale, torch.cat(scores))
    return _without_overlaps(found)


def choose_faces(faces: Sequence[Face], choice: str) -> list[Face]:
    """The faces to use: one of `FACE_CHOICES`; "first" is the one with the best score.

    Raises:
        BadInputError: an unknown choice.
    """
    if one_of(choice, FACE_CHOICES, "choice of faces") == "all":
        return list(faces)
    return [max(faces, key=lambda face: face.area) if choice == "largest" else faces[0]]


def _centres(cells: int, stride: int, anchors: int) -> Tensor:
    """x and y of every anchor, row by row; those of one cell follow each other."""
    rows, columns = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
    centres = stride * torch.stack((columns, rows), dim=-1).reshape(-1, 2).float()
    return centres.repeat_interleave(anchors // len(centres), dim=0)


def _without_overlaps(found: Detections) -> Detections:
    order = found.scores.argsort(descending=True, stable=True)
    kept: list[Tensor] = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[_overlaps(found.boxes[best], found.boxes[order]) <= _MOST_OVERLAP]
    chosen = torch.stack(kept) if kept else order
    return Detections(found.boxes[chosen], found.landmarks[chosen], found.scores[chosen])


def _overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of a box with others; edges are pixels that belong to it."""
    corner = torch.maximum(box[:2], others[:, :2])
    sides = (torch.minimum(box[2:], others[:, 2:]) - corner + 1).clamp(min=0)
    shared = sides.prod(dim=1)
    return shared / (_area(box) + _area(others) - shared)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2] + 1).prod(dim=-1)
