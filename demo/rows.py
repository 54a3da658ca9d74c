"""What stands on the contact sheet: pictures with their labels, and how like their references they are to the judge."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from demo.judge import Judge

UNRELATED = 0.45  # similarity that two different emoji have on average, to the judge


@dataclass(frozen=True)
class Shown:
    """A picture and what stands under it.

    Attributes:
        similarities: to each reference of the row; in a row of halves, of the left half to the left half of the first
            reference, and of the right half to the right half of the second.
    """

    label: str
    picture: Image.Image
    similarities: tuple[float, ...] = ()


@dataclass(frozen=True)
class Row:
    """A workflow: what it shows, its references, its results."""

    title: str
    file: str
    text: str
    references: tuple[Shown, ...]
    results: tuple[Shown, ...]


def whole(judge: Judge, references: Sequence[Image.Image], results: Sequence[Image.Image]) -> list[tuple[float, ...]]:
    """Similarity of each result to each reference."""
    features = judge.features([*references, *results])
    return [tuple(row) for row in (features[len(references) :] @ features[: len(references)].T).tolist()]


def halves(
    judge: Judge, references: Sequence[Image.Image], results: Sequence[Image.Image]
) -> list[list[tuple[float, ...]]]:
    """Similarity of each half of each result to the same half of both references: left, then right."""
    return [whole(judge, _half(references, side), _half(results, side)) for side in (0, 1)]


def _half(pictures: Sequence[Image.Image], side: int) -> list[Image.Image]:
    """Cut out, 0 being the left."""
    return [
        picture.crop((side * picture.width // 2, 0, (side + 1) * picture.width // 2, picture.height))
        for picture in map(_square, pictures)
    ]


def _square(picture: Image.Image) -> Image.Image:
    """The middle, as the encoder sees a reference."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))
