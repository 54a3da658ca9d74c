"""Aligning a face: the similarity transform that lays five landmarks on ArcFace's template, and the cut-out picture.

Landmarks are the pupils, the tip of the nose and the corners of the mouth, left first. The template is that of ArcFace
(arXiv 1801.07698) as InsightFace (MIT) publishes it, for pictures of 112 pixels.
"""

# H W size of the picture

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BadInputError

# x, y in pixels
_TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
_NARROW, _WIDE = 112, 128  # sizes whose multiples have a template; the wide one has a margin at both sides
_MARGIN = (_WIDE - _NARROW) / 2


def face_template(size: int) -> Tensor:
    """Where the landmarks lie in an aligned picture of `size` pixels, a multiple of 112 or 128: (5, 2), float64.

    Raises:
        BadInputError: another size.
    """
    template = torch.tensor(_TEMPLATE, dtype=torch.float64)
    if size % _NARROW == 0:
        return template * (size / _NARROW)
    if size % _WIDE == 0:
        return (template + torch.tensor((_MARGIN, 0.0), dtype=torch.float64)) * (size / _WIDE)
    raise BadInputError(
        f"an aligned face of {size} pixels",
        expected="a multiple of 112 or of 128",
        action="choose 112, 224, 256 or 336",
    )


def similarity_transform(source: Tensor, target: Tensor) -> Tensor:
    """Rotation, scale and shift that bring points nearest to others in the sense of least squares (Umeyama, 1991).

    In the plane it is z -> a z + b with complex numbers, whose least squares have a closed form.

    Args:
        source, target: (N, 2).

    Returns:
        (2, 3), float64: the matrix of x and y, and the shift.

    Raises:
        BadInputError: all source points are one.
    """
    z, w = (torch.view_as_complex(points.double().contiguous()) for points in (source, target))
    centred = z - z.mean()
    size = centred.abs().square().sum()
    if not size > 0:
        raise BadInputError(
            "a face whose landmarks are all one point",
            expected="two eyes, a nose and two corners of a mouth",
            action="use a picture in which the face is larger",
        )
    factor = (centred.conj() * (w - w.mean())).sum() / size
    shift = w.mean() - factor * z.mean()
    a, b, x, y = factor.real, factor.imag, shift.real, shift.imag
    return torch.stack((torch.stack((a, -b, x)), torch.stack((b, a, y))))


def align_face(picture: Tensor, landmarks: Tensor, size: int) -> Tensor:
    """Cut a face out so that its landmarks lie on the template; outside the picture it is black.

    Args:
        picture: (H, W, 3), uint8.
        landmarks: (5, 2), x and y in pixels.

    Returns:
        (size, size, 3), uint8, sampled bilinearly.
    """
    height, width = picture.shape[:2]
    there = similarity_transform(landmarks, face_template(size))
    matrix, shift = there[:, :2], there[:, 2]
    rows, columns = torch.meshgrid(torch.arange(size).double(), torch.arange(size).double(), indexing="ij")
    points = (torch.stack((columns, rows), dim=-1) - shift) @ torch.linalg.inv(matrix).T  # where each pixel comes from
    # grid_sample counts from -1 in the middle of the first pixel to 1 in that of the last
    grid = 2 * points / torch.tensor((max(width - 1, 1), max(height - 1, 1))).double() - 1
    planes = picture.movedim(-1, 0)[None].double()
    face = functional.grid_sample(planes, grid[None], mode="bilinear", padding_mode="zeros", align_corners=True)
    return face[0].movedim(0, -1).round().clamp(0, 255).to(torch.uint8)
