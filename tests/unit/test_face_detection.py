"""What a detector gives is read as faces, and one of them is chosen."""

import pytest
import torch
from torch import Tensor

from ipadapter_core.errors import BadInputError
from ipadapter_core.face.detection import Face, choose_faces, detector_input, read_detections

SIZE = 64


def outputs(*, anchors: int = 2) -> dict[str, list[Tensor]]:
    """Of a detector that found nothing: scores, boxes and landmarks at strides 8, 16 and 32."""
    counts = [anchors * (SIZE // stride) ** 2 for stride in (8, 16, 32)]
    return {name: [torch.zeros(n, w) for n in counts] for name, w in (("score", 1), ("box", 4), ("points", 10))}


def put(found: dict[str, list[Tensor]], level: int, row: int, score: float, reach: float) -> None:
    """A face whose box reaches so many strides to all sides, with its landmarks at 1, 2 … 10 strides."""
    found["score"][level][row], found["box"][level][row] = score, reach
    found["points"][level][row] = torch.arange(1.0, 11.0)


def read(found: dict[str, list[Tensor]], scale: float = 1.0) -> object:
    return read_detections([out for part in found.values() for out in part], SIZE, scale)


def test_an_anchor_is_a_cell_times_its_stride() -> None:
    found = outputs()
    put(found, level=1, row=2 * (4 * 2 + 3), score=0.8, reach=1.5)  # row 2, column 3 of the map at stride 16
    faces = read(found, scale=0.5)
    assert faces.scores.tolist() == pytest.approx([0.8])
    centre = torch.tensor((3 * 16.0, 2 * 16.0))
    assert faces.boxes[0].tolist() == ((torch.cat((centre - 24, centre + 24))) / 0.5).tolist()
    offsets = torch.arange(1.0, 11.0).reshape(5, 2) * 16
    assert torch.equal(faces.landmarks[0], (centre + offsets) / 0.5)


def test_order_of_the_outputs_and_a_leading_one_do_not_matter() -> None:
    found = outputs()
    put(found, 0, 6, 0.9, 1)
    put(found, 2, 7, 0.6, 0.5)
    plain = read(found)
    shuffled = read_detections([out[None] for part in reversed(found.values()) for out in reversed(part)], SIZE, 1.0)
    assert len(plain.scores) == 2
    assert torch.equal(plain.boxes, shuffled.boxes)
    assert torch.equal(plain.landmarks, shuffled.landmarks)


def test_faces_come_by_falling_score_and_unlikely_ones_not_at_all() -> None:
    found = outputs(anchors=1)
    for row, score in ((0, 0.6), (7, 0.95), (56, 0.49), (63, 0.7)):
        put(found, 0, row, score, 0.5)
    assert read(found).scores.tolist() == pytest.approx([0.95, 0.7, 0.6])


@pytest.mark.parametrize(("shift", "kept"), [(0, 1), (3, 1), (4, 2)])
def test_a_face_over_a_better_one_is_left_out(shift: int, kept: int) -> None:
    """Boxes of 65 pixels: moved by 24, they share 41/89 of their union, by 32 only 33/97."""
    found = outputs(anchors=1)
    put(found, 0, 8 * 4, 0.9, 4)
    if shift:
        put(found, 0, 8 * 4 + shift, 0.8, 4)
    assert len(read(found).scores) == kept


def test_nothing_found_is_no_face() -> None:
    faces = read(outputs())
    assert (len(faces.boxes), len(faces.landmarks), len(faces.scores)) == (0, 0, 0)


@pytest.mark.parametrize("drop", ["points", "score"])
def test_a_detector_without_landmarks_or_scores_is_refused(drop: str) -> None:
    found = outputs()
    del found[drop]
    with pytest.raises(BadInputError, match="SCRFD network with landmarks"):
        read(found)


def test_outputs_for_another_size_are_refused() -> None:
    with pytest.raises(BadInputError, match="SCRFD"):
        read_detections([out for part in outputs().values() for out in part], 96, 1.0)


@pytest.mark.parametrize(("height", "width", "covered"), [(50, 100, (32, 64)), (100, 50, (64, 32)), (10, 10, (64, 64))])
def test_the_picture_lies_in_the_upper_left_of_the_square(height: int, width: int, covered: tuple[int, int]) -> None:
    pixels, scale = detector_input(torch.full((height, width, 3), 255, dtype=torch.uint8), SIZE)
    assert pixels.shape == (1, 3, SIZE, SIZE)
    assert scale == covered[0] / height
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[: covered[0], : covered[1]] = True
    assert (pixels[0, :, inside] == (255 - 127.5) / 128).all()
    assert (pixels[0, :, ~inside] == -127.5 / 128).all()


def face(score: float, side: float) -> Face:
    return Face(torch.tensor((0, 0, side, side)), torch.zeros(5, 2), score, torch.tensor((3.0, 4.0)))


def test_largest_first_and_all() -> None:
    faces = [face(0.9, 5), face(0.8, 9), face(0.7, 7)]
    assert choose_faces(faces, "largest") == [faces[1]]
    assert choose_faces(faces, "first") == [faces[0]]
    assert choose_faces(faces, "all") == faces
    with pytest.raises(BadInputError, match=r"choice of faces 'smallest'.*largest, first, all"):
        choose_faces(faces, "smallest")


def test_normed_embedding_has_length_one() -> None:
    assert face(1, 1).normed_embedding.tolist() == pytest.approx([0.6, 0.8])
