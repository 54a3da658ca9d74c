"""Which side each conditioning of a sampler's batch is on, and which part of the latent it is about.

A row's side is the list it lies in: ComfyUI's `cond_or_uncond` only numbers the lists that a guider hands to the sampler.
DualCFG's first one is its negative, PerpNeg's third one is empty, self-attention guidance runs the negative alone as
number 0; and a conditioning with an area is copied into the other list under the same uuid. A list that is none of the
guider's, as the empty prompt that PerpNeg encodes for itself, is no positive and goes without the image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...ipadapter_core.branch.rows import COND, UNCOND, Group, Place

_PICTURES = (4, 5)  # dimensions of a latent that is a picture, or pictures of a video
# What guiders call the conditionings that go without the image. DualCFG's middle one is what the positive is compared
# with, as ComfyUI counts it among the negatives. What a guider of another pack calls otherwise is a positive.
_WITHOUT_IMAGE = ("neg", "middle", "empty", "uncond")


@dataclass(frozen=True, eq=False)
class Conditionings:
    """What a sampler is about to sample together, at one noise level; another one for every such time.

    Attributes:
        sides: of each list, by its number.
        places: of conditionings with an area, by number and uuid.
        latents: rows of each conditioning.
        size: height and width of the latent.
    """

    sides: tuple[int, ...]
    places: Mapping[tuple[int, object], Place]
    latents: int
    size: tuple[int, int]

    def groups(self, numbers: Sequence[int], uuids: Sequence[object]) -> list[Group]:
        """The conditionings of one call of the model, in batch order."""
        known = uuids if len(uuids) == len(numbers) else [None] * len(numbers)
        return [self._group(number, uuid) for number, uuid in zip(numbers, known, strict=True)]

    def _group(self, number: int, uuid: object) -> Group:
        if number >= len(self.sides):
            return by_number(number)
        return Group(number, self.sides[number], self.places.get((number, uuid)))


def by_number(number: int) -> Group:
    """What a number stands for where no guider is known: 1 is uncond; a third one is a second cond."""
    return Group(number, UNCOND if number == 1 else COND)


def read_conditionings(
    lists: Sequence[Sequence[Mapping[str, Any]] | None],
    known: Mapping[str, Sequence[Mapping[str, Any]]],
    x: Tensor,
) -> Conditionings:
    """What the lists handed to the sampler are.

    Args:
        lists: as `calc_cond_batch` gets them; one may be None.
        known: the guider's, by name; without one a list's number is all there is to go by.
        x: (B, C, …, h, w).
    """
    sides = [
        _side_of(conditionings or (), known) if known else by_number(number).side
        for number, conditionings in enumerate(lists)
    ]
    size = (x.shape[-2], x.shape[-1])
    places = {
        (number, entry.get("uuid")): place
        for number, conditionings in enumerate(lists)
        for entry in conditionings or ()
        if x.ndim in _PICTURES and (place := _place(entry.get("area"), size))
    }
    return Conditionings(tuple(sides), places, x.shape[0], size)


def _side_of(conditionings: Sequence[Mapping[str, Any]], known: Mapping[str, Sequence[Mapping[str, Any]]]) -> int:
    """The side of a list: known by identity, or of a copy (a context window's) by whose entries it has."""
    sides = {name: _side_of_known(name, theirs or ()) for name, theirs in known.items()}
    for name, side in sides.items():
        if known[name] is conditionings:
            return side
    uuids = [entry["uuid"] for entry in conditionings if "uuid" in entry]
    sides_of_uuid: dict[object, set[int]] = {}
    of_equal: set[int] = set()
    for name, side in sides.items():
        theirs = [entry.get("uuid") for entry in known[name] or ()]
        of_equal |= {side} if uuids and theirs == uuids else set()
        for uuid in theirs:
            sides_of_uuid.setdefault(uuid, set()).add(side)
    # An entry that lies on both sides, as a copy with an area does, says nothing.
    of_entries = {side for uuid in uuids if len(both := sides_of_uuid.get(uuid, set())) == 1 for side in both}
    for found in (of_equal, of_entries):
        if len(found) == 1:
            return found.pop()
    return UNCOND


def _side_of_known(name: str, conditionings: Sequence[Mapping[str, Any]]) -> int:
    """The side of a guider's list, by its name or by how ComfyUI's guiders mark their further negatives."""
    is_marked = name != "positive" and any(entry.get("prompt_type") == "negative" for entry in conditionings)
    return UNCOND if is_marked or any(word in name for word in _WITHOUT_IMAGE) else COND


def _place(area: Sequence[int] | None, whole: tuple[int, int]) -> Place | None:
    """A conditioning's area as the sampler cuts it out."""
    if area is None or len(area) not in (4, 6):
        return None
    half = len(area) // 2  # sizes, then offsets; of a video the frames come first in both
    (height, width), (top, left) = area[half - 2 : half], area[-2:]
    place = Place(top, left, min(whole[0] - top, height), min(whole[1] - left, width), whole)
    return None if (place.height, place.width) == whole else place
