"""`Backbone`: all that a kind of base model has to say for itself. The rows stand in `registry.py`."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from enum import Enum

from torch import Tensor, nn

from ..errors import UnsupportedFamilyError
from ..operations import Operations
from .sites import Address, Block, Roles, Site


class Place(str, Enum):
    """Where in a block the image is added."""

    ATTENTION = "attention"  # to what the attention gives, before its output projection
    BLOCK = "block"  # to what the whole block gives
    BEFORE_MLP = "before_mlp"  # to what a block's MLP reads, and what it adds to


# A site's weights, tokens (…, T, C), and the size of a head, to keys and values (…, T, H·D)
ProjectTokens = Callable[[nn.Module, Tensor, int], tuple[Tensor, Tensor]]


def plain_kv(projection: nn.Module, tokens: Tensor, _head_dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values as the two projections give them."""
    return projection.to_k_ip(tokens), projection.to_v_ip(tokens)  # type: ignore[operator]


def in_heads(x: Tensor, head_dim: int) -> Tensor:
    """(…, H·D) to (…, H, D)."""
    return x.view(*x.shape[:-1], -1, head_dim)


def _everywhere(_site: Site) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class TimedSites:
    """What adapters do whose tokens change with the noise level, and whose attention runs over the picture's own keys too.

    Attributes:
        projection: the weights of a site, made of the width of the tokens, the site's channels, the layer classes, the
            size of a head and the width of a noise level's vector.
        kv: those weights, tokens (R, T, C) and the vectors (R or 1, W), through SiLU, to keys and values (R, T, H, D).
        adapter_norms: the weights the adapter norms queries and keys of the picture with, (D,) each.
        block_norms: those the block itself norms them with before; None where it does not.
        epsilon: of all these norms.
    """

    projection: Callable[[int, int, Operations, int, int], nn.Module]
    kv: Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
    adapter_norms: Callable[[nn.Module], tuple[Tensor, Tensor]]
    block_norms: Callable[[nn.Module, Address], tuple[Tensor | None, Tensor | None]]
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class SiteLayout:
    """What the adapters of one author do at the sites of a kind of base model.

    Attributes:
        site_projection, site_key: as `Backbone`'s.
        kv: keys and values of the tokens at a site, made once.
        acts_at: the sites these adapters have weights for.
        place: where in a block they act.
        timed: in place of `site_projection` and `kv`, where keys and values change with the noise level.
        shared_projection: as `site_projection`, of the weights that make the keys and values of all sites.
        gate: of a site's weights, what makes a factor for each channel of the model's timestep embedding.
        key_weight: name of the weight in the model, one number for each channel of a head, that keys are multiplied with.
        scales_tokens: a strength multiplies tokens, before anything else.
        headed_projection: in place of `site_projection`, where weights are about heads: made of the size of one too.
    """

    site_projection: Callable[[int, int, Operations], nn.Module]
    site_key: Callable[[int], str]
    kv: ProjectTokens = plain_kv
    acts_at: Callable[[Site], bool] = _everywhere
    place: Place = Place.ATTENTION
    timed: TimedSites | None = None
    shared_projection: Callable[[int, int, Operations], nn.Module] | None = None
    gate: Callable[[nn.Module], nn.Module] | None = None
    key_weight: Callable[[Site], str] | None = None
    scales_tokens: bool = False
    headed_projection: Callable[[int, int, Operations, int], nn.Module] | None = None


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A kind of base model: where its attention sites are and what they are made of.

    Attributes:
        name: also in an adapter's spec, to say what it was made for.
        find: the sites of a model in checkpoint order; none where it is another kind of model.
        groups: first parts of its sites' addresses, in the order they run: what layer weights and presets may name.
        roles: what its blocks are known to carry.
        site_projection: the trained weights of a site, made of the width of the tokens, the site's channels and the
            layer classes; a module with `to_k_ip` and `to_v_ip`.
        site_key: under which key below `ip_adapter.` the weights of a site stand, by its index.
        families: names by (width of the text tokens, number of sites); for messages only.
        unserved: as `families`, of models that no adapter is known for.
        patch_size: cells of the latent on a side that make one token; 1 where sites have feature maps of their own.
        layouts: how adapters act whose files are not laid out as `site_projection` and `site_key` say, by
            `AdapterSpec.layout`.
    """

    name: str
    find: Callable[[nn.Module], tuple[Site, ...]]
    groups: tuple[str, ...]
    roles: Callable[[Set[Block]], Roles]
    site_projection: Callable[[int, int, Operations], nn.Module]
    site_key: Callable[[int], str]
    families: Mapping[tuple[int, int], str] = field(default_factory=dict)
    unserved: Mapping[tuple[int, int], str] = field(default_factory=dict)
    patch_size: Callable[[nn.Module], int] = lambda _model: 1
    layouts: Mapping[str, SiteLayout] = field(default_factory=dict)

    def layout(self, name: str) -> SiteLayout:
        """How the adapters of a file layout act.

        Raises:
            UnsupportedFamilyError: none of this layout is known for this kind of model.
        """
        if not self.layouts:
            return SiteLayout(site_projection=self.site_projection, site_key=self.site_key)
        if name not in self.layouts:
            raise UnsupportedFamilyError(
                f"an adapter for {self.name} whose file is laid out as {name!r}",
                expected=f"one of {', '.join(self.layouts)}",
                action="update IP-Adapter Studio, or choose another adapter",
            )
        return self.layouts[name]
