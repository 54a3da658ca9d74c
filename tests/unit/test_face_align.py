"""Faces are laid on ArcFace's template: equal to InsightFace's own alignment, and by the definition of least squares."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from insightface.utils import face_align
from skimage.transform import SimilarityTransform
from torch import Tensor

from ipadapter_core.errors import BadInputError
from ipadapter_core.face.align import align_face, face_template, similarity_transform

SIZES = (112, 224, 256, 336)


def random_points(seed: int) -> Tensor:
    return torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 50 + 200


def turned(points: Tensor, angle: float, scale: float, shift: tuple[float, float]) -> Tensor:
    turn = torch.tensor(((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle)))).double()
    return scale * points @ turn.T + torch.tensor(shift).double()


@given(st.floats(-3, 3), st.floats(0.1, 9), st.floats(-300, 300), st.floats(-300, 300))
def test_a_turned_scaled_and_shifted_face_is_brought_back(angle: float, scale: float, x: float, y: float) -> None:
    points = random_points(1)
    matrix = similarity_transform(turned(points, angle, scale, (x, y)), points)
    back = turned(points, angle, scale, (x, y)) @ matrix[:, :2].T + matrix[:, 2]
    torch.testing.assert_close(back, points, rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_transform_equals_that_of_scikit_image(seed: int) -> None:
    """Where no similarity fits exactly, it is the best one."""
    source, target = random_points(seed), random_points(seed + 10)
    expected = SimilarityTransform.from_estimate(source.numpy(), target.numpy()).params[:2]
    torch.testing.assert_close(similarity_transform(source, target), torch.from_numpy(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_transform_equals_that_of_insightface(size: int) -> None:
    marks = turned(face_template(112), 0.3, 1.7, (60.0, 20.0)) + random_points(2) / 50
    expected = face_align.estimate_norm(marks.numpy().astype(np.float32), size)
    ours = similarity_transform(marks, face_template(size))
    torch.testing.assert_close(ours, torch.from_numpy(expected).double(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [0.6, 1.7, 3.0])
def test_picture_equals_that_of_insightface(size: int, scale: float) -> None:
    rows, columns = torch.meshgrid(torch.arange(300.0), torch.arange(400.0), indexing="ij")
    waves = [127 + 90 * torch.sin(rows / 9 + k) * torch.cos(columns / 13 - k) for k in range(3)]
    picture = torch.stack(waves, dim=-1).round().to(torch.uint8)
    marks = turned(face_template(112), -0.25, scale, (110.0, 25.0))
    expected = face_align.norm_crop(picture.numpy(), marks.numpy().astype(np.float32), size)
    ours = align_face(picture, marks, size)
    assert ours.shape == (size, size, 3)
    difference = (ours.int() - torch.from_numpy(expected).int()).abs()
    assert difference.max() <= 4  # OpenCV counts in 32nds of a pixel
    assert difference.float().mean() < 0.5
    assert ours.float().std() > 20


def test_outside_the_picture_is_black() -> None:
    face = align_face(torch.full((60, 60, 3), 200, dtype=torch.uint8), face_template(112) + 20, 112)
    assert (face[-20:] == 0).all()
    assert (face[:30, :30] == 200).all()


def test_a_face_where_the_template_is_is_cut_out_unchanged() -> None:
    picture = torch.randint(0, 256, (150, 130, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(align_face(picture, face_template(112), 112), picture[:112, :112])


def test_a_size_without_a_template_is_refused() -> None:
    with pytest.raises(BadInputError, match="200 pixels"):
        face_template(200)


def test_landmarks_on_one_point_are_refused() -> None:
    with pytest.raises(BadInputError, match="all one point"):
        align_face(torch.zeros(9, 9, 3, dtype=torch.uint8), torch.full((5, 2), 4.0), 112)
