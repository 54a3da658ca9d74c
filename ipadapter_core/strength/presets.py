"""Layer presets: which sites take the image, how strongly, and on which side. Data, resolved before sampling.

The style and composition blocks are those of InstantStyle (arXiv 2404.02733): `up_blocks.0.attentions.1` carries style,
`down_blocks.2.attentions.1` layout. The profiles are the weight types shared workflows know.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from ..backbone.sites import AttentionSite, UNetSites
from ..branch.kv import SiteStrength
from ..errors import BadInputError


class Role(str, Enum):
    """What a block is known to carry."""

    STYLE = "style"
    COMPOSITION = "composition"
    OTHER = "other"


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
    """Factors by role, by block, and over the depth of the network; all multiply. `graded`: role factors count too."""

    style: Part = ON
    composition: Part = ON
    other: Part = ON
    blocks: Mapping[str, float] | None = None
    depth: Callable[[float], float] | None = None
    graded: bool = False

    def part(self, role: Role) -> Part:
        return {Role.STYLE: self.style, Role.COMPOSITION: self.composition, Role.OTHER: self.other}[role]


# depth profiles: 0 is the first transformer, 1 past the last
PRESETS: dict[str, Preset] = {
    "all": Preset(),
    "style": Preset(composition=OFF, other=OFF),
    "composition": Preset(style=OFF, other=OFF, graded=True),
    "style and composition": Preset(composition=Part(second=True), other=OFF, graded=True),
    "strong style": Preset(composition=OFF),
    "strong style and composition": Preset(composition=Part(second=True)),
    "precise style": Preset(composition=Part(second=True, swap=True), other=OFF, graded=True),
    "precise composition": Preset(
        style=Part(second=True, swap=True), other=Part(0.1, second=True, swap=True), graded=True
    ),
    "ease in": Preset(depth=lambda x: _FLOOR + (1 - _FLOOR) * (1 - x)),
    "ease out": Preset(depth=lambda x: _FLOOR + (1 - _FLOOR) * x),
    "ease in-out": Preset(depth=lambda x: _FLOOR + (1 - _FLOOR) * (1 - abs(2 * x - 1))),
    "reverse in-out": Preset(depth=lambda x: _FLOOR + (1 - _FLOOR) * abs(2 * x - 1)),
    "weak input": Preset(blocks={"input": _LOW}),
    "weak middle": Preset(blocks={"middle": _LOW}),
    "weak output": Preset(blocks={"output": _LOW}),
    "strong middle": Preset(blocks={"input": _LOW, "output": _LOW}),
}

# With one strength for both parts this one is the same as "all".
ONE_STRENGTH_PRESETS = tuple(name for name in PRESETS if name != "strong style and composition")

_SD15_BLOCKS = frozenset(
    [("input", i) for i in (1, 2, 4, 5, 7, 8)] + [("middle", 0)] + [("output", i) for i in range(3, 12)]
)
# SD1.5 has no single style block: (role, factor) by block, other blocks are OTHER.
_SD15_ROLES: dict[tuple[str, int], tuple[Role, float]] = {
    **{("input", i): (Role.STYLE, 1.0) for i in (1, 2, 4, 5)},
    **{("output", i): (Role.STYLE, 1.0) for i in range(5, 12)},
    ("input", 7): (Role.COMPOSITION, 0.25),
    ("input", 8): (Role.COMPOSITION, 1.0),
}


def block_roles(unet: UNetSites) -> dict[tuple[str, int], tuple[Role, float]]:
    """Role and role factor of each block that has one.

    Apart from SD1.5, composition is the last transformer on the way down and style the second on the way up: in SDXL
    InstantStyle's blocks, in a distilled or tiny model their counterparts.
    """
    if unet.blocks == _SD15_BLOCKS:
        return _SD15_ROLES
    down = sorted(block_id for block, block_id in unet.blocks if block == "input")
    up = sorted(block_id for block, block_id in unet.blocks if block == "output")
    roles: dict[tuple[str, int], tuple[Role, float]] = {}
    if down:
        roles["input", down[-1]] = (Role.COMPOSITION, 1.0)
    if up:
        roles["output", up[min(1, len(up) - 1)]] = (Role.STYLE, 1.0)
    return roles


def resolve_preset(
    name: str, unet: UNetSites, strength: float, second_strength: float | None = None
) -> dict[int, SiteStrength]:
    """Strength of every site, by site index.

    Args:
        name: a key of `PRESETS`.
        unet: the model's sites.
        strength: the user's strength.
        second_strength: strength of the parts marked `second`; the first one if None.

    Raises:
        BadInputError: an unknown preset, or one that selects nothing on this model.
    """
    if name not in PRESETS:
        raise BadInputError(f"layer preset {name!r}", expected=f"one of {', '.join(PRESETS)}", action="choose one")
    preset, roles = PRESETS[name], block_roles(unet)
    second = strength if second_strength is None else second_strength
    resolved: dict[int, SiteStrength] = {}
    for site in unet.sites:
        role, role_factor = roles.get((site.block, site.block_id), (Role.OTHER, 1.0))
        part = preset.part(role)
        factor = part.factor * _block_factor(preset, site) * _depth_factor(preset, site, unet.num_transformers)
        if preset.graded:
            factor *= role_factor
        resolved[site.index] = SiteStrength(factor * (second if part.second else strength), part.swap)
    if strength != 0 and second != 0 and all(site.value == 0 for site in resolved.values()):
        raise BadInputError(
            f"layer preset {name!r} selects no attention layer of this model",
            expected="a model that has the preset's blocks",
            action="use the preset 'all', or IPALayerWeights",
        )
    return resolved


def _block_factor(preset: Preset, site: AttentionSite) -> float:
    return (preset.blocks or {}).get(site.block, 1.0)


def _depth_factor(preset: Preset, site: AttentionSite, num_transformers: int) -> float:
    return preset.depth(site.transformer / num_transformers) if preset.depth else 1.0
