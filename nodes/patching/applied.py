"""`Applied`: what adapters do on a MODEL, as the nodes leave it in its `transformer_options`."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from torch import nn

from ...ipadapter_core.backbone.sites import Site, Sites
from ...ipadapter_core.branch.plan import PatchPlan

KEY = "ipadapter_studio"
OVERRIDE = "optimized_attention_override"  # ComfyUI's, in transformer_options


@dataclass(frozen=True, eq=False)
class Applied:
    """The adapters of one model. Immutable: another adapter makes a new one.

    Attributes:
        sites: of the model.
        plans: one per adapter, in the order they were applied.
        model_sampling: the schedule as it was then; only for calls of the network past any sampler.
        network: the base model itself.
        fill_slots: makes `transformer_options` in which every site has a patch of ours, also those no plan patches; None
            where every site has one already.
        hooked: what must be around a forward of the network that runs compiled; None is nothing.
    """

    sites: Sites
    plans: tuple[PatchPlan, ...]
    model_sampling: Any
    network: nn.Module
    fill_slots: Callable[[Mapping[str, Any], Sites], dict[str, Any]] | None = None
    hooked: "Hooked | None" = None

    def __deepcopy__(self, _memo: object) -> "Applied":
        """Itself: packs copy a model's options whole, and this never changes."""
        return self

    def keep_slots(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """`transformer_options` in which our patch is back at every planned site whose slot another pack took over."""
        return options if self.fill_slots is None else self.fill_slots(options, self._planned)

    @cached_property
    def _planned(self) -> Sites:
        addresses = {address for plan in self.plans for address in plan.slots}
        sites = tuple(site for site in self.sites.sites if site.address in addresses)
        return replace(self.sites, sites=sites)

    @cached_property
    def running_order(self) -> tuple[Site, ...]:
        """All sites as the model runs them."""
        return tuple(sorted(self.sites.sites, key=lambda site: (site.depth, site.address)))


class Hooked(Protocol):
    """Hooks on the modules of a network, which are gone afterwards."""

    def __call__(
        self, network: nn.Module, applied: Applied, /, *, is_compiled: bool
    ) -> AbstractContextManager[None]: ...


def applied_to(options: Mapping[str, Any]) -> Applied | None:
    """What adapters do on the model whose `transformer_options` these are."""
    found = options.get(KEY)
    return found if isinstance(found, Applied) else None
