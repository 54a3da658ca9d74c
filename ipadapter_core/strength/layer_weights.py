"""`LayerWeights`: the user's own factors per group of sites and per single site, on top of a preset."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ..backbone.sites import Block, Role, Roles, Site, Sites
from ..errors import BadInputError, shown
from ..numbers import NUMBER, WHOLE, entries
from .site import SiteStrength

GROUPS = ("input", "middle", "output", "style", "composition")
_SHORTEST_RUN = 2  # as many names are as short as "from to"

_ENTRY = re.compile(rf"(?P<first>{WHOLE})(?:-(?P<last>{WHOLE}))?\s*:\s*(?P<factor>{NUMBER})")
_BLOCK_ENTRY = re.compile(rf"(?P<block>[a-z_]+)\.(?P<id>{WHOLE})(?:\.(?P<layer>{WHOLE}))?\s*:\s*(?P<factor>{NUMBER})")


@dataclass(frozen=True)
class SiteFactor:
    """A factor for some sites: by index range in checkpoint order, or by block address."""

    factor: float
    indices: range | None = None
    block: Block | None = None
    layer: int | None = None

    def __str__(self) -> str:
        if self.indices is not None:
            return f"{self.indices.start}-{self.indices.stop - 1}"
        return ".".join(str(part) for part in (*(self.block or ()), self.layer) if part is not None)

    def is_known(self, sites: Sites) -> bool:
        if self.indices is not None:
            return self.indices.stop <= len(sites.sites)
        return any(self.applies_to(site) for site in sites.sites)

    def applies_to(self, site: Site) -> bool:
        if self.indices is not None:
            return site.index in self.indices
        return self.block == site.block and self.layer in (None, site.address[2])


@dataclass(frozen=True)
class LayerWeights:
    """Factors that multiply a preset's; 1 is neutral, 0 switches sites off.

    Attributes:
        groups: by a name of `GROUPS`.
        factors: single sites; if several apply to a site they all multiply.
    """

    groups: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    factors: tuple[SiteFactor, ...] = ()

    def apply(self, strengths: Mapping[int, SiteStrength], sites: Sites) -> dict[int, SiteStrength]:
        """Multiply resolved strengths.

        Raises:
            BadInputError: an entry that names no site of this model.
        """
        for factor in self.factors:
            if not factor.is_known(sites):
                raise BadInputError(
                    f"layer weight for {factor}, which this model does not have",
                    expected=f"layers 0 to {len(sites.sites) - 1}, or its blocks {_block_names(sites)}",
                    action="remove the entry or correct its number",
                )
        roles = sites.roles
        known = {*sites.backbone.groups, *(role.value for role, _ in roles.values())}
        if foreign := [name for name, factor in self.groups.items() if factor != 1 and name not in known]:
            there = [f"weights for {', '.join(names)}"] if (names := [name for name in GROUPS if name in known]) else []
            raise BadInputError(
                f"layer weights for {', '.join(foreign)}, which this kind of model does not have",
                expected=", or ".join((*there, f"factors for its blocks {_block_names(sites)}")),
                action=f"set {', '.join(foreign)} to 1",
            )
        return {
            site.index: replace(strength, value=strength.value * self._factor(site, roles))
            for site in sites.sites
            if (strength := strengths.get(site.index)) is not None
        }

    def _factor(self, site: Site, roles: Roles) -> float:
        role = roles.get(site.block, (Role.OTHER, 1.0))[0]
        factor = self.groups.get(site.group, 1.0) * self.groups.get(role.value, 1.0)
        for entry in self.factors:
            if entry.applies_to(site):
                factor *= entry.factor
        return factor


def parse_site_factors(text: str) -> tuple[SiteFactor, ...]:
    """Read `3: 0.5`, `4-9: 0`, `input.8: 1.2`, `output.1.3: 0`, separated by commas or line ends; empty is allowed.

    Raises:
        BadInputError: an entry of another form.
    """
    return tuple(_parse_entry(entry) for entry in entries(text))


def _parse_entry(entry: str) -> SiteFactor:
    if match := _ENTRY.fullmatch(entry):
        first, last = int(match["first"]), int(match["last"] or match["first"])
        if first <= last:
            return SiteFactor(float(match["factor"]), indices=range(first, last + 1))
    if match := _BLOCK_ENTRY.fullmatch(entry):
        layer = None if match["layer"] is None else int(match["layer"])
        return SiteFactor(float(match["factor"]), block=(match["block"], int(match["id"])), layer=layer)
    raise BadInputError(
        f"layer weight '{shown(entry)}'",
        expected="'layer: factor', 'first-last: factor' or 'block.number: factor', such as '3: 0.5' or 'output.1: 0'",
        action="correct the entry",
    )


def _block_names(sites: Sites) -> str:
    """`input.4, input.5, output.0 to output.5`: the blocks there are, runs of three and more shortened."""
    runs: list[list[Block]] = []
    for group, number in sorted(sites.blocks):
        if runs and runs[-1][-1] == (group, number - 1):
            runs[-1].append((group, number))
        else:
            runs.append([(group, number)])
    names = ([f"{group}.{number}" for group, number in run] for run in runs)
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > _SHORTEST_RUN else ", ".join(run) for run in names)
