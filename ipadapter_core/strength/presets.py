"""Layer presets: which sites take the image, how strongly, and on which side. Data, resolved before sampling.

The style and composition blocks are those of InstantStyle (arXiv 2404.02733): `up_blocks.0.attentions.1` carries style,
`down_blocks.2.attentions.1` layout. The profiles are the weight types shared workflows know.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..backbone.sites import Role, Sites
from ..errors import BadInputError, one_of
from .site import SiteStrength


@dataclass(frozen=True)
class Part:
    """How a preset treats the sites of one role.

    Attributes:
        factor: multiplies the strength.
        second: use the second strength in place of the first (see `resolve_preset`).
        swap: image on the uncond side instead of the cond side.
    """

    factor: float = 1.0
    second: bool = False
    swap: bool = False


ON = Part()
OFF = Part(0.0)
_LOW = 0.2
_FLOOR = 0.05
_STEEPNESS = 10.0  # of the sigmoid: 0.7 % in the first block


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Factors by role, by group of blocks, and over the depth of the network; all multiply.

    Attributes:
        groups: every one it names has to be there.
        depth: of where a block runs, see `Site.depth`.
        rise: as `depth`, but from 0 in the first block to 1 in the last.
        graded: the factors of the roles' own blocks count too.
        needs_second: with one strength for both parts it is the same as "all".
    """

    style: Part = ON
    composition: Part = ON
    other: Part = ON
    groups: Mapping[str, float] | None = None
    depth: Callable[[float], float] | None = None
    rise: Callable[[float], float] | None = None
    graded: bool = False
    needs_second: bool = False

    def part(self, role: Role) -> Part:
        return {Role.STYLE: self.style, Role.COMPOSITION: self.composition, Role.OTHER: self.other}[role]

    @property
    def is_about_roles(self) -> bool:
        return any(self.part(role) != ON for role in Role)


# depth profiles: 0 is the first transformer, 1 past the last
PRESETS: dict[str, Preset] = {
    "all": Preset(),
    "style": Preset(composition=OFF, other=OFF),
    "composition": Preset(style=OFF, other=OFF, graded=True),
    "style and composition": Preset(composition=Part(second=True), other=OFF, graded=True),
    "strong style": Preset(composition=OFF),
    "strong style and composition": Preset(composition=Part(second=True), needs_second=True),
    "precise style": Preset(composition=Part(second=True, swap=True), other=OFF, graded=True),
    "precise composition": Preset(
        style=Part(second=True, swap=True), other=Part(0.1, second=True, swap=True), graded=True
    ),
    "ease in": Preset(depth=lambda x: _FLOOR + (1 - _FLOOR) * (1 - x)),
    "ease out": Preset(depth=lambda x: _FLOOR + (1 - _FLOOR) * x),
    "ease in-out": Preset(depth=lambda x: _FLOOR + (1 - _FLOOR) * (1 - abs(2 * x - 1))),
    "reverse in-out": Preset(depth=lambda x: _FLOOR + (1 - _FLOOR) * abs(2 * x - 1)),
    "weak input": Preset(groups={"input": _LOW}),
    "weak middle": Preset(groups={"middle": _LOW}),
    "weak output": Preset(groups={"output": _LOW}),
    "strong middle": Preset(groups={"input": _LOW, "output": _LOW}),
    "double blocks": Preset(groups={"double": 1.0, "single": 0.0}),
    "single blocks": Preset(groups={"double": 0.0, "single": 1.0}),
    "first half": Preset(depth=lambda x: float(x < 0.5)),
    "second half": Preset(depth=lambda x: float(x >= 0.5)),
    "linear rise": Preset(rise=lambda x: x),
    "sigmoid rise": Preset(rise=lambda x: 1 / (1 + math.exp(-_STEEPNESS * (x - 0.5)))),
}

ONE_STRENGTH_PRESETS = tuple(name for name, preset in PRESETS.items() if not preset.needs_second)
# As a person looks for them: by what they are about.
PRESET_GROUPS: tuple[tuple[str, ...], ...] = (
    ("all",),
    ("style", "composition", "style and composition", "strong style", "precise style", "precise composition"),
    ("first half", "second half", "linear rise", "sigmoid rise"),
    ("ease in", "ease out", "ease in-out", "reverse in-out"),
    ("weak input", "weak middle", "weak output", "strong middle"),
    ("double blocks", "single blocks"),
)


def resolve_preset(
    name: str, sites: Sites, strength: float, second_strength: float | None = None
) -> dict[int, SiteStrength]:
    """Strength of every site, by site index.

    Args:
        name: a key of `PRESETS`.
        sites: the model's.
        strength: the user's strength.
        second_strength: strength of the parts marked `second`; the first one if None.

    Raises:
        BadInputError: an unknown preset, or one that selects nothing on this model.
    """
    preset = one_of(name, PRESETS, "layer preset")
    second = strength if second_strength is None else second_strength
    if (strength or second) and (reason := why_meaningless(name, sites)):
        raise BadInputError(
            f"layer preset {name!r}, which {reason}",
            expected=f"one of those that act here: {', '.join(meaningful_presets(sites))}",
            action="use the preset 'all', or another of these",
        )
    return {
        index: SiteStrength(factor * (second if part.second else strength), part.swap)
        for index, (part, factor) in _parts(preset, sites).items()
    }


def meaningful_presets(sites: Sites) -> tuple[str, ...]:
    """The presets that select something on this model, for one strength."""
    return tuple(name for name in ONE_STRENGTH_PRESETS if not why_meaningless(name, sites))


def why_meaningless(name: str, sites: Sites) -> str | None:
    """Why a preset says nothing about a model, to go after "which"; None where it does."""
    preset, groups = PRESETS[name], sites.backbone.groups
    if unknown := sorted(set(preset.groups or {}).difference(groups)):
        return f"is about the layers {', '.join(unknown)}: those of this model are {', '.join(groups)}"
    if preset.is_about_roles and not sites.roles:
        return f"is about layers of style and composition: nobody knows which those of {sites.family} are"
    if not any(factor for _, factor in _parts(preset, sites).values()):
        present = [group for group in groups if any(site.group == group for site in sites.sites)]
        return f"selects no attention layer this adapter acts at: those are {_counted(len(sites.sites), present)}"
    return None


def _counted(number: int, groups: list[str]) -> str:
    return f"{number} {' and '.join(groups)} {'layer' if number == 1 else 'layers'}"


def _parts(preset: Preset, sites: Sites) -> dict[int, tuple[Part, float]]:
    """How each site is treated and what its strength is multiplied by, by site index."""
    roles, last = sites.roles, max(site.depth for site in sites.sites)
    parts: dict[int, tuple[Part, float]] = {}
    for site in sites.sites:
        role, role_factor = roles.get(site.block, (Role.OTHER, 1.0))
        part = preset.part(role)
        factor = part.factor * (preset.groups or {}).get(site.group, 1.0)
        if preset.depth:
            factor *= preset.depth(site.depth)
        if preset.rise:
            factor *= preset.rise(site.depth / last if last else 1.0)
        parts[site.index] = part, factor * role_factor if preset.graded else factor
    return parts
