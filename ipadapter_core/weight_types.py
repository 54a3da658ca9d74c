"""Weight types: the names shared workflows give to layer presets, and the numbers that belong to them."""

from dataclasses import dataclass

from .errors import BadInputError
from .kv import SiteStrength
from .presets import resolve_preset
from .sites import UNetSites


@dataclass(frozen=True)
class WeightType:
    """A layer preset under its old name.

    Attributes:
        preset: a key of `presets.PRESETS`.
        second: strength of the preset's second part where none is given; None takes the first one.
        swaps: gives the image to the uncond side of some layers, also when single layers are listed.
    """

    preset: str
    second: float | None = None
    swaps: bool = False


WEIGHT_TYPES: dict[str, WeightType] = {
    "linear": WeightType("all"),
    "ease in": WeightType("ease in"),
    "ease out": WeightType("ease out"),
    "ease in-out": WeightType("ease in-out"),
    "reverse in-out": WeightType("reverse in-out"),
    "weak input": WeightType("weak input"),
    "weak output": WeightType("weak output"),
    "weak middle": WeightType("weak middle"),
    "strong middle": WeightType("strong middle"),
    "style transfer": WeightType("style"),
    "composition": WeightType("composition"),
    "strong style transfer": WeightType("strong style"),
    # what shared pictures were made with: the composition layers stay at 1 whatever the weight
    "style and composition": WeightType("style and composition", second=1.0),
    "style transfer precise": WeightType("precise style", swaps=True),
    "composition precise": WeightType("precise composition", swaps=True),
    "strong style and composition": WeightType("strong style and composition", second=1.0),
}
# No widget offers the last one: the style and composition nodes choose it.
OFFERED_WEIGHT_TYPES = tuple(WEIGHT_TYPES)[:-1]


def resolve_weight_type(
    name: str, unet: UNetSites, weight: float, second: float | None = None
) -> dict[int, SiteStrength]:
    """Strength of every site, by site index, with nothing for the middle block.

    IPAdapter_plus registers its patch of the middle block under an address nobody looks up, so the pictures made with
    it have none there.

    Args:
        second: weight of the composition layers (of all others for "composition precise"); None is the type's own.

    Raises:
        BadInputError: an unknown weight type, or one that selects nothing on this model.
    """
    weight_type = WEIGHT_TYPES.get(name)
    if weight_type is None:
        raise BadInputError(f"weight type {name!r}", expected=f"one of {', '.join(WEIGHT_TYPES)}", action="choose one")
    second = weight_type.second if second is None else second
    return without_middle(resolve_preset(weight_type.preset, unet, weight, second), unet)


def without_middle(strengths: dict[int, SiteStrength], unet: UNetSites) -> dict[int, SiteStrength]:
    """The strengths of all sites outside the middle block."""
    middle = {site.index for site in unet.sites if site.block == "middle"}
    return {index: strength for index, strength in strengths.items() if index not in middle}
