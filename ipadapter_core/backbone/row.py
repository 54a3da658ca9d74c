"""`Backbone`: all that a kind of base model has to say for itself. The rows stand in `registry.py`."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from torch import nn

from ..operations import Operations
from .sites import Block, Roles, Site


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
    """

    name: str
    find: Callable[[nn.Module], tuple[Site, ...]]
    groups: tuple[str, ...]
    roles: Callable[[Set[Block]], Roles]
    site_projection: Callable[[int, int, Operations], nn.Module]
    site_key: Callable[[int], str]
    families: Mapping[tuple[int, int], str] = field(default_factory=dict)
