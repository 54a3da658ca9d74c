"""The record of a sampling as masks for its pictures."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from ..ipadapter_core.branch.heat import HeatMaps
from ..ipadapter_core.branch.recording import Record
from ..ipadapter_core.errors import BadInputError, MismatchError, one_of

SCALES = ("common", "own")


def maps_of(record: Record) -> HeatMaps:
    """Raises MismatchError: nothing whole was recorded."""
    if record.maps is not None:
        return record.maps
    if record.fault:
        raise MismatchError(
            f"the record of a sampling that is not whole: {record.fault}",
            expected="a sampling that ran to its end, by a sampler that shows the model whole pictures or says which part",
            action="sample again, without the node that is named here if there is one; change the seed if the sampler does "
            "not run",
        )
    raise MismatchError(
        "a heat map of a model that was not sampled since it was recorded",
        expected="the model of Record IP-Adapter Heat Map in a sampler, and the picture that comes of it here",
        action="connect the model of Record IP-Adapter Heat Map to the sampler, and the image of VAE Decode to IP-Adapter "
        "Heat Map; if both are connected, change the seed, so that the sampler runs again",
    )


def heat_of(maps: HeatMaps, shape: Sequence[int], chosen: tuple[int, int, int], scale: str) -> Tensor:
    """A map for each picture, 0 to 1, (N, H, W).

    Args:
        shape: number, height and width of the pictures.
        chosen: numbers of adapter, reference and step, as those of `HeatMaps.pick`.
        scale: one of `SCALES`.

    Raises:
        BadInputError: there is none of a number, or as many pictures as maps.
    """
    heat = maps.pick(*chosen)
    own = one_of(scale, SCALES, "scale") == SCALES[1]
    most = float((heat if own else maps.pick(step=chosen[2])).max())
    count, height, width = shape
    if len(heat) not in (1, count) and count > 1:
        raise BadInputError(
            f"{count} pictures, for the record of {len(heat)}",
            expected="the pictures of the sampling that was recorded, or one",
            action="connect the pictures of this sampling",
        )
    heat = (heat / most if most > 0 else heat).clamp(0, 1)
    heat = functional.interpolate(heat[:, None], size=(height, width), mode="bilinear")[:, 0]
    return heat.repeat(count, 1, 1) if len(heat) == 1 else heat
