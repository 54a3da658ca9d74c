"""Keys and values of the image tokens, computed once per site and packed into one tensor.

Image tokens do not change over the sampling steps, so nothing of the adapter's network is needed while sampling.
"""

# T image tokens in all, C cross-attention dim, H heads, D head dim, P numbers packed per row
# F frames: 1, or one set of tokens for every latent of a batch; rows: uncond of every frame, then cond of every frame

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from ..backbone.sites import Site
from ..errors import BadInputError
from ..network.adapter import IPAdapter
from ..strength.scaling import VALUE_ONLY, Scaling
from ..strength.site import AnyStrength
from .tokens import ImageTokens

UNCOND_ROW, COND_ROW = 0, 1


class Moment(Protocol):
    """What a source of keys and values may ask about the forward they are for."""

    @property
    def frames(self) -> tuple[int, ...]:
        """Number of each latent of a block among all that are sampled."""

    @property
    def evaluation(self) -> Hashable:
        """Equal for forwards that belong together, at one noise level."""

    @property
    def timestep(self) -> Tensor:
        """(1,), 0..1000, on the device that is sampled on."""

    def kept(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, made once per sampling."""


class KVSource(Protocol):
    """Where the keys and values of a plan come from: constant ones, or such as change with the frame or in time."""

    @property
    def is_per_frame(self) -> bool:
        """Every latent has its own."""

    def key(self, moment: Moment, /) -> Hashable:
        """Equal for two moments at which `at` gives the same."""

    def at(self, moment: Moment, /, device: torch.device, dtype: torch.dtype) -> "PackedKV":
        """Keys and values of this moment, on this device in this dtype."""

    def num_bytes(self, latents: int, element_size: int, /) -> int:
        """What `at` takes on the device for so many latents."""


@dataclass(frozen=True, eq=False)
class SiteKV:
    """K and V of every site of one adapter for one set of tokens, or one set per frame.

    Attributes:
        keys, values: by site index, each (2·F, T, H·D): uncond rows, then cond rows.
        tokens: image tokens per reference, of which T is a multiple; None is T.
    """

    keys: Mapping[int, Tensor]
    values: Mapping[int, Tensor]
    tokens: int | None = None

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys.values(), *self.values.values()))


@dataclass(frozen=True, eq=False)
class PackedKV:
    """K and V of the sites a plan patches, heads split, strengths folded in.

    Attributes:
        data: (2·F, P), uncond rows, then cond rows, F the frames of one window. In this order the rows are the batch
            that ComfyUI samples (`cond_or_uncond == [1, 0]`), which then needs no copy.
        offsets: start of each site inside a row; its K comes first, then its V.
        shapes: (H, T, D) of each site.
    """

    data: Tensor
    offsets: tuple[int, ...]
    shapes: tuple[tuple[int, int, int], ...]

    @property
    def is_per_frame(self) -> bool:
        return False

    def key(self, _moment: Moment, /) -> Hashable:
        return None

    def at(self, _moment: Moment, /, device: torch.device, dtype: torch.dtype) -> "PackedKV":
        """Itself: its keys and values never change."""
        return replace(self, data=self.data.to(device, dtype))

    def num_bytes(self, _latents: int, element_size: int, /) -> int:
        return self.data.numel() * element_size

    def views(self, data: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """(K, V) per site, each (G, H, T, D), as views of rows arranged like this tensor's."""
        return tuple(
            (_view(data, offset, shape), _view(data, offset + _size(shape), shape))
            for offset, shape in zip(self.offsets, self.shapes, strict=True)
        )


@torch.no_grad()
def project_tokens(
    adapter: IPAdapter, tokens: ImageTokens, device: torch.device, sites: Collection[int] | None = None
) -> SiteKV:
    """Run `to_k_ip` and `to_v_ip` of these sites (None: all) over the tokens, on `device`; the result lies on the CPU.

    Raises:
        BadInputError: the result is not finite (damaged weights).
    """
    sides = torch.stack(tokens.sequences()).to(device)  # (2, T, C)
    keys, values = {}, {}
    for index in range(adapter.spec.num_sites) if sites is None else sites:
        keys[index], values[index] = (part.cpu() for part in adapter.kv(index, sides))
    if not all(tensor.isfinite().all() for tensor in (*keys.values(), *values.values())):
        raise BadInputError(
            f"NaN or infinite keys or values from {adapter.spec.family}",
            expected="finite weights",
            action="the adapter file is damaged: download it again",
        )
    return SiteKV(keys, values, tokens.cond.shape[1])


def active_sites(sites: Sequence[Site], strengths: Mapping[int, AnyStrength]) -> tuple[Site, ...]:
    """The sites whose strength is not 0 in every frame; one not listed has none."""
    return tuple(site for site in sites if site.index in strengths and any(strengths[site.index].factors))


def pack_sites(
    kv: SiteKV,
    sites: Sequence[Site],
    strengths: Mapping[int, AnyStrength],
    scaling: Scaling = VALUE_ONLY,
    key_weights: Mapping[int, Tensor] = MappingProxyType({}),
) -> PackedKV:
    """Fold strengths in and pack the sites.

    Args:
        kv: of all these sites at least.
        sites: those to pack, in the order of the result; give the head split.
        strengths: by site index, as many factors as `kv` has frames, or one.
        scaling: what a strength multiplies.
        key_weights: by site index, (D,), what its keys are multiplied with; none is 1.

    Returns:
        As many frames as `kv` has. Never changes `kv`.
    """
    pieces: list[Tensor] = []
    offsets: list[int] = []
    shapes: list[tuple[int, int, int]] = []
    size = 0
    for site in sites:
        strength = strengths[site.index]
        key, value = kv.keys[site.index], kv.values[site.index]
        frames = len(value) // 2
        weight = value.new_tensor(strength.factors).expand(frames).repeat(2)[:, None, None]
        key, value = scaling.apply(key, value, weight, kv.tokens or key.shape[1])
        if strength.swap:
            key, value = (torch.cat((x[frames:], torch.zeros_like(x[frames:]))) for x in (key, value))
        key, value = _split_heads(key, site), _split_heads(value, site)
        if site.index in key_weights:
            key = key * key_weights[site.index].to(key)
        pieces += [key.flatten(1), value.flatten(1)]
        offsets.append(size)
        shapes.append((key.shape[1], key.shape[2], key.shape[3]))
        size += 2 * _size(shapes[-1])
    data = torch.cat(pieces, dim=1) if pieces else torch.empty(2, 0)
    return PackedKV(data, tuple(offsets), tuple(shapes))


def _split_heads(x: Tensor, site: Site) -> Tensor:
    return rearrange(x, "row t (h d) -> row h t d", h=site.heads)


def _size(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


def _view(data: Tensor, offset: int, shape: tuple[int, int, int]) -> Tensor:
    return data[:, offset : offset + _size(shape)].view(-1, *shape)
