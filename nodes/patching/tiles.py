"""Which part of the picture a call of the model shows, as far as the tensor itself tells."""

from collections.abc import Sequence

from torch import Tensor

from ...ipadapter_core.branch.rows import Group, Place


def place_of(x: Tensor, groups: Sequence[Group], whole: tuple[int, int]) -> tuple[Place | None, bool]:
    """The place of a tile that is not the sampler's own, if there is one, and whether it is unknown.

    Args:
        x: (N, C, h, w), what the model is called with.
        groups: the conditionings with the places the sampler gave them.
        whole: height and width of the latent.
    """
    size = tuple(x.shape[-2:])
    expected = {whole if group.place is None else (group.place.height, group.place.width) for group in groups}
    if x.ndim not in (4, 5) or expected == {size}:
        return None, False
    if expected != {whole}:
        return None, True  # a tile of an area
    height, width = whole
    if x.stride()[-3:] != (height * width, width, 1):
        return None, True
    # A slice of the whole latent: where it begins in memory is where it lies.
    top, left = divmod(int(x.storage_offset()) % (height * width), width)
    if top + size[0] > height or left + size[1] > width:
        return None, True
    return Place(top, left, size[0], size[1], whole), False
