"""`PatchPlan`: everything an applied adapter does while sampling."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from ..backbone.row import Place
from ..backbone.sites import Address, Site
from ..strength.curve import Curve
from ..strength.site import AnyStrength
from .guard import NO_GUARD, Guard
from .heat import References
from .kv import KVSource
from .masks import AREA
from .schedule import PercentRange


@dataclass(frozen=True, eq=False)
class PatchPlan:
    """One adapter, one set of tokens, on one model. Immutable; what depends on a sampling run is not in it.

    Attributes:
        sites: the sites it patches, in the order of `kv`.
        kv: their keys and values, strengths folded in but for `strengths`.
        acting: when it acts; None is always.
        curve: how its strength changes over the sampling; None is not at all.
        mask: (M, H, W) where it acts, 0..1; None is everywhere.
        resampling: how the mask is brought to a feature map; see `masks.mask_to_tokens`.
        place: where in a block it acts.
        strengths: of what each site's attention gives, in the order of `sites`, where they cannot be folded into values.
        gates: for each site, what makes a factor for each channel of the model's timestep embedding; empty is none.
        lora_of: id of the adapter whose LoRA for the model came with this plan; empty is none.
        guard: what holds the branch back.
        references: whose the image tokens of each site are; empty is all of one.
    """

    sites: tuple[Site, ...]
    kv: KVSource
    acting: PercentRange | None = None
    mask: Tensor | None = None
    resampling: str = AREA
    place: Place = Place.ATTENTION
    strengths: tuple[AnyStrength, ...] = ()
    gates: tuple[nn.Module, ...] = ()
    lora_of: str = ""
    curve: Curve | None = None
    references: tuple[References, ...] = ()
    guard: Guard = NO_GUARD

    @cached_property
    def slots(self) -> Mapping[Address, int]:
        """Place of each site in the plan."""
        return {site.address: slot for slot, site in enumerate(self.sites)}
