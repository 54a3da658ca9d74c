"""Attention sites: where in a base model an adapter acts, whatever kind of model it is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .row import Backbone

# Group, block of that group, layer of that block: ("output", 1, 3).
Address = tuple[str, int, int]
Block = tuple[str, int]


class Role(str, Enum):
    """What a block is known to carry."""

    STYLE = "style"
    COMPOSITION = "composition"
    OTHER = "other"


Roles = Mapping[Block, tuple[Role, float]]  # role of a block, and its factor where presets are graded


@dataclass(frozen=True, kw_only=True)
class Site:
    """One attention layer that takes image tokens.

    Attributes:
        index: position in checkpoint order.
        address: where it is; its first part is a group of the backbone.
        depth: where it runs, from 0 (first) to below 1; equal within one block.
        heads, head_dim: as built; heads * head_dim is the site's channel count.
        context_dim: width of the tokens it reads; 0 where that is the adapter's own business.
    """

    index: int
    address: Address
    depth: float
    heads: int
    head_dim: int
    context_dim: int

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def group(self) -> str:
        return self.address[0]

    @property
    def block(self) -> Block:
        return self.address[:2]


def blocks_in_a_row(group: str, heads: Iterable[tuple[int, int]]) -> tuple[Site, ...]:
    """One site for each block of a model whose blocks run in their order, where tokens are as wide as an adapter makes them.

    Args:
        group: first part of their addresses.
        heads: of each block how many, and the size of one.
    """
    counted = tuple(heads)
    return tuple(
        Site(
            index=index,
            address=(group, index, 0),
            depth=index / len(counted),
            heads=count,
            head_dim=head_dim,
            context_dim=0,
        )
        for index, (count, head_dim) in enumerate(counted)
    )


@dataclass(frozen=True)
class Sites:
    """All sites of a base model in checkpoint order, and the kind of model they belong to.

    Attributes:
        patch_size: see `Backbone.patch_size`.
    """

    backbone: "Backbone"
    sites: tuple[Site, ...]
    patch_size: int = 1

    def at_layout(self, name: str) -> "Sites":
        """Those that adapters of a file layout act at, with depths of their own."""
        acts_at = self.backbone.layout(name).acts_at
        acting = [site for site in self.sites if acts_at(site)]
        if len(acting) == len(self.sites):
            return self
        depths = sorted({site.depth for site in acting})
        own = tuple(replace(site, depth=depths.index(site.depth) / len(depths)) for site in acting)
        return replace(self, sites=own)

    @property
    def blocks(self) -> frozenset[Block]:
        return frozenset(site.block for site in self.sites)

    @property
    def roles(self) -> Roles:
        """Role of each block that has one."""
        return self.backbone.roles(self.blocks)

    @property
    def family(self) -> str:
        """Name of the model family, as well as numbers can tell."""
        width, count = self._size
        other = f"{width or self.sites[0].dim}-wide, {count}-layer"
        return self.backbone.families.get(self._size) or self.unserved or other

    @property
    def unserved(self) -> str | None:
        """Name of the model family if no adapter is known for it."""
        return self.backbone.unserved.get(self._size)

    @property
    def _size(self) -> tuple[int, int]:
        return self.sites[0].context_dim, len(self.sites)
