"""Weight types: the names shared workflows give to layer presets, and the numbers that belong to them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..backbone.sites import Sites
from ..errors import BadInputError, one_of, shown
from ..numbers import NUMBER, WHOLE, entries
from ..strength.presets import resolve_preset, why_meaningless
from ..strength.site import AnyStrength, FrameStrength, SiteStrength


@dataclass(frozen=True)
class WeightType:
    """A layer preset under its old name.

    Attributes:
        preset: a key of `presets.PRESETS`.
        second: strength of the preset's second part where none is given; None takes the first one.
        offered: in a widget; where not, the style and composition nodes choose it.
    """

    preset: str
    second: float | None = None
    offered: bool = True


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
    "style transfer precise": WeightType("precise style"),
    "composition precise": WeightType("precise composition"),
    "strong style and composition": WeightType("strong style and composition", second=1.0, offered=False),
}
_LAYER_WEIGHT = re.compile(rf"({WHOLE})\s*:\s*({NUMBER})")

OFFERED_WEIGHT_TYPES = tuple(name for name, weight_type in WEIGHT_TYPES.items() if weight_type.offered)


def resolve_weight_type(name: str, sites: Sites, weight: float, second: float | None = None) -> dict[int, SiteStrength]:
    """Strength of every site, by site index, with nothing for the middle block.

    IPAdapter_plus registers its patch of the middle block under an address nobody looks up, so the pictures made with
    it have none there.

    Args:
        second: weight of the composition layers (of all others for "composition precise"); None is the type's own.

    Raises:
        BadInputError: an unknown weight type, or one that selects nothing on this model.
    """
    weight_type = one_of(name, WEIGHT_TYPES, "weight type")
    second = weight_type.second if second is None else second
    if (weight or second) and (reason := why_meaningless(weight_type.preset, sites)):
        others = (other for other in OFFERED_WEIGHT_TYPES if not why_meaningless(WEIGHT_TYPES[other].preset, sites))
        raise BadInputError(
            f"weight type {name!r}, which {reason}",
            expected=f"one of those that act here: {', '.join(others)}",
            action="use the weight type 'linear', or another of these",
        )
    return without_middle(resolve_preset(weight_type.preset, sites, weight, second), sites)


def resolve_frames(
    name: str, sites: Sites, weights: Sequence[float], seconds: Sequence[float], factors: Mapping[int, float]
) -> Mapping[int, AnyStrength]:
    """Strength of every site when weights change from frame to frame, by site index.

    Args:
        name: a weight type.
        weights, seconds: one per frame, the last serves all further ones; see `resolve_weight_type`. No seconds take
            the type's own.
        factors: of `resolve_layer_weights`; without any the weight type decides.

    Raises:
        BadInputError: as `resolve_weight_type`.
    """
    resolved: list[dict[int, SiteStrength]] = []
    for frame in range(max(len(weights), len(seconds))):
        weight = weights[min(frame, len(weights) - 1)]
        if factors:
            resolved.append(resolve_layer_weights(factors, name, sites, weight))
        else:
            second = seconds[min(frame, len(seconds) - 1)] if seconds else None
            resolved.append(resolve_weight_type(name, sites, weight, second))
    if len(resolved) == 1:
        return resolved[0]
    return {
        index: FrameStrength(tuple(frame[index].value for frame in resolved), strength.swap)
        for index, strength in resolved[0].items()
    }


def without_middle(strengths: dict[int, SiteStrength], sites: Sites) -> dict[int, SiteStrength]:
    """The strengths of all sites outside the middle block."""
    middle = {site.index for site in sites.sites if site.group == "middle"}
    return {index: strength for index, strength in strengths.items() if index not in middle}


def parse_layer_weights(text: str) -> dict[int, float]:
    """Read `3: 0.5, 6: 1`: factors by transformer in execution order (input, middle, output); empty is allowed.

    Raises:
        BadInputError: an entry of another form.
    """
    factors: dict[int, float] = {}
    for entry in entries(text):
        match = _LAYER_WEIGHT.fullmatch(entry)
        if match is None:
            raise BadInputError(
                f"layer weight '{shown(entry)}'",
                expected="'transformer: factor' pairs separated by commas, such as '3: 0.5, 6: 1'",
                action="correct the entry",
            )
        factors[int(match[1])] = float(match[2])
    return factors


def resolve_layer_weights(
    factors: Mapping[int, float], name: str, sites: Sites, weight: float
) -> dict[int, SiteStrength]:
    """Strength of every site when transformers are listed: those that are not get nothing, nor does the middle block.

    Args:
        factors: by transformer, multiply the weight; those of transformers the model does not have count for nothing.
        name: a weight type, of which only the sides matter: "precise" types swap them at some sites.
    """
    of_type = resolve_weight_type(name, sites, 1.0)
    numbers = {depth: number for number, depth in enumerate(sorted({site.depth for site in sites.sites}))}
    return {
        site.index: SiteStrength(weight * factors.get(numbers[site.depth], 0.0), of_type[site.index].swap)
        for site in sites.sites
        if site.index in of_type
    }
