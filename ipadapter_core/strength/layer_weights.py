"""`LayerWeights`: the user's own factors per group of sites and per single site, on top of a preset."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ..backbone.sites import AttentionSite, UNetSites
from ..branch.kv import SiteStrength
from ..errors import BadInputError
from .presets import Role, block_roles

GROUPS = ("input", "middle", "output", "style", "composition")

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_ENTRY = re.compile(rf"(?P<first>\d+)(?:-(?P<last>\d+))?\s*:\s*(?P<factor>{_NUMBER})")
_BLOCK_ENTRY = re.compile(
    rf"(?P<block>input|middle|output)\.(?P<id>\d+)(?:\.(?P<depth>\d+))?\s*:\s*(?P<factor>{_NUMBER})"
)


@dataclass(frozen=True)
class SiteFactor:
    """A factor for some sites: by index range in checkpoint order, or by block address."""

    factor: float
    indices: range | None = None
    block: tuple[str, int] | None = None
    depth_index: int | None = None

    def __str__(self) -> str:
        if self.indices is not None:
            return f"{self.indices.start}-{self.indices.stop - 1}"
        return ".".join(str(part) for part in (*(self.block or ()), self.depth_index) if part is not None)

    def is_known(self, unet: UNetSites) -> bool:
        if self.indices is not None:
            return self.indices.stop <= len(unet.sites)
        return any(self.applies_to(site) for site in unet.sites)

    def applies_to(self, site: AttentionSite) -> bool:
        if self.indices is not None:
            return site.index in self.indices
        return self.block == (site.block, site.block_id) and self.depth_index in (None, site.depth_index)


@dataclass(frozen=True)
class LayerWeights:
    """Factors that multiply a preset's; 1 is neutral, 0 switches sites off.

    Attributes:
        groups: by a name of `GROUPS`.
        factors: single sites; if several apply to a site they all multiply.
    """

    groups: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    factors: tuple[SiteFactor, ...] = ()

    def apply(self, strengths: Mapping[int, SiteStrength], unet: UNetSites) -> dict[int, SiteStrength]:
        """Multiply resolved strengths.

        Raises:
            BadInputError: an entry that names no site of this model.
        """
        for factor in self.factors:
            if not factor.is_known(unet):
                raise BadInputError(
                    f"layer weight for {factor}, which this model does not have",
                    expected=f"layers 0 to {len(unet.sites) - 1}, or its blocks {_block_names(unet)}",
                    action="remove the entry or correct its number",
                )
        roles = block_roles(unet)
        return {
            site.index: replace(strength, value=strength.value * self._factor(site, roles))
            for site in unet.sites
            if (strength := strengths.get(site.index)) is not None
        }

    def _factor(self, site: AttentionSite, roles: Mapping[tuple[str, int], tuple[Role, float]]) -> float:
        role = roles.get((site.block, site.block_id), (Role.OTHER, 1.0))[0]
        factor = self.groups.get(site.block, 1.0) * self.groups.get(role.value, 1.0)
        for entry in self.factors:
            if entry.applies_to(site):
                factor *= entry.factor
        return factor


def parse_site_factors(text: str) -> tuple[SiteFactor, ...]:
    """Read `3: 0.5`, `4-9: 0`, `input.8: 1.2`, `output.1.3: 0`, separated by commas or line ends; empty is allowed.

    Raises:
        BadInputError: an entry of another form.
    """
    entries = [entry.strip() for entry in re.split(r"[,\n;]", text)]
    return tuple(_parse_entry(entry) for entry in entries if entry)


def _parse_entry(entry: str) -> SiteFactor:
    if match := _ENTRY.fullmatch(entry):
        first, last = int(match["first"]), int(match["last"] or match["first"])
        if first <= last:
            return SiteFactor(float(match["factor"]), indices=range(first, last + 1))
    if match := _BLOCK_ENTRY.fullmatch(entry):
        depth = None if match["depth"] is None else int(match["depth"])
        return SiteFactor(float(match["factor"]), block=(match["block"], int(match["id"])), depth_index=depth)
    raise BadInputError(
        f"layer weight {entry!r}",
        expected="'layer: factor', 'first-last: factor' or 'block.number: factor', such as '3: 0.5' or 'output.1: 0'",
        action="correct the entry",
    )


def _block_names(unet: UNetSites) -> str:
    return ", ".join(f"{block}.{block_id}" for block, block_id in sorted(unet.blocks))
