"""Layer presets: which sites take the image, how strongly, and on which side. Data, resolved before sampling.

The style and composition blocks are those of InstantStyle (arXiv 2404.02733): `up_blocks.0.attentions.1` carries style,
`down_blocks.2.attentions.1` layout. The profiles are the weight types shared workflows know.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..backbone.sites import Role, Site, Sites
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


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Factors by role, by group of blocks, and over the depth of the network; all multiply.

    Attributes:
        graded: the factors of the roles' own blocks count too.
        needs_second: with one strength for both parts it is the same as "all".
    """

    style: Part = ON
    composition: Part = ON
    other: Part = ON
    groups: Mapping[str, float] | None = None
    depth: Callable[[float], float] | None = None
    graded: bool = False
    needs_second: bool = False

    def part(self, role: Role) -> Part:
        return {Role.STYLE: self.style, Role.COMPOSITION: self.composition, Role.OTHER: self.other}[role]


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
}

ONE_STRENGTH_PRESETS = tuple(name for name, preset in PRESETS.items() if not preset.needs_second)


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
    preset, roles = one_of(name, PRESETS, "layer preset"), sites.roles
    if unknown := sorted(set(preset.groups or {}).difference(sites.backbone.groups)):
        raise BadInputError(
            f"layer preset {name!r}, which is about the layers {', '.join(unknown)}",
            expected=f"a preset for a model whose layers are {', '.join(sites.backbone.groups)}",
            action="use the preset 'all'",
        )
    second = strength if second_strength is None else second_strength
    resolved: dict[int, SiteStrength] = {}
    for site in sites.sites:
        role, role_factor = roles.get(site.block, (Role.OTHER, 1.0))
        part = preset.part(role)
        factor = part.factor * _group_factor(preset, site) * _depth_factor(preset, site)
        if preset.graded:
            factor *= role_factor
        resolved[site.index] = SiteStrength(factor * (second if part.second else strength), part.swap)
    if strength != 0 and second != 0 and all(site.value == 0 for site in resolved.values()):
        raise BadInputError(
            f"layer preset {name!r} selects no attention layer of this model",
            expected="a model that has the preset's blocks",
            action="use the preset 'all', or weights for groups of layers",
        )
    return resolved


def _group_factor(preset: Preset, site: Site) -> float:
    return (preset.groups or {}).get(site.group, 1.0)


def _depth_factor(preset: Preset, site: Site) -> float:
    return preset.depth(site.depth) if preset.depth else 1.0
