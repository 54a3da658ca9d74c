"""Adapters whose tokens change with the noise level: what is found out about them before anything is patched."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ipadapter_core.backbone.sites import Site
from ...ipadapter_core.branch.timed import TimedKV
from ...ipadapter_core.branch.tokens import ImageTokens
from ...ipadapter_core.errors import BadInputError
from ...ipadapter_core.strength.site import AnyStrength, SiteStrength
from ..cache import CACHE
from ..sockets import LoadedAdapter

_MIDDLE = 500.0  # of the timesteps
_NEUTRAL = SiteStrength(1.0)


@dataclass(frozen=True)
class _Trial:
    """A moment of no sampling."""

    timestep: Tensor
    frames: tuple[int, ...] = (0,)
    evaluation: Hashable = None

    def kept(self, _key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        return make()


def timed_source(
    adapter: LoadedAdapter,
    sites: tuple[Site, ...],
    tokens: Mapping[int, ImageTokens],
    strengths: Mapping[int, AnyStrength],
    per_frame: bool,
) -> TimedKV:
    """The keys and values of an adapter that makes them at every step. Arguments as `application.patch_sites`'.

    Raises:
        BadInputError: damaged weights, or more negatives than references.
    """
    source = TimedKV(sites, strengths, adapter.network, tokens, per_frame)
    for of in set(tokens.values()):
        _check_finite(adapter, sites, of)
    return source


def _check_finite(adapter: LoadedAdapter, sites: tuple[Site, ...], tokens: ImageTokens) -> None:
    """Run the network once. Raises BadInputError: what it gives is not finite."""
    every = {site.index: tokens for site in sites}

    def is_finite() -> bool:
        device = adapter.load_to_device()
        moment = _Trial(torch.tensor([_MIDDLE], device=device))
        trial = TimedKV(sites, dict.fromkeys(every, _NEUTRAL), adapter.network, every, is_per_frame=True)
        return bool(trial.at(moment, device, torch.float32).data.isfinite().all())

    if not CACHE.get_or_make(("finite", tokens.digest, sites), bool, is_finite, lambda _: 0):
        raise BadInputError(
            f"NaN or infinite keys or values from {adapter.spec.family}",
            expected="finite weights",
            action="the adapter file is damaged: download it again",
        )
