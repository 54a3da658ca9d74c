"""Keys and values of the image tokens, computed once per site and packed into one tensor.

Image tokens do not change over the sampling steps, so nothing of the adapter's network is needed while sampling.
"""

# T image tokens in all, C cross-attention dim, H heads, D head dim, P numbers packed per side

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from .adapter import IPAdapter
from .errors import BadInputError
from .sites import AttentionSite
from .tokens import ImageTokens

UNCOND_ROW, COND_ROW = 0, 1


@dataclass(frozen=True)
class SiteStrength:
    """How one site uses the image.

    Attributes:
        value: multiplies the values; 1 is neutral, 0 leaves the site unpatched.
        swap: give the image to the uncond side and nothing to the cond side ("precise" presets).
    """

    value: float
    swap: bool = False


@dataclass(frozen=True, eq=False)
class SiteKV:
    """K and V of every site of one adapter for one set of tokens.

    Attributes:
        keys, values: per site in checkpoint order, each (2, T, H·D): uncond, then cond.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


@dataclass(frozen=True, eq=False)
class PackedKV:
    """K and V of the sites a plan patches, heads split, strengths folded into V.

    Attributes:
        data: (2, P), row 0 uncond, row 1 cond. In this order the rows are the batch that ComfyUI samples
            (`cond_or_uncond == [1, 0]`), which then needs no copy.
        offsets: start of each site inside a row; its K comes first, then its V.
        shapes: (H, T, D) of each site.
    """

    data: Tensor
    offsets: tuple[int, ...]
    shapes: tuple[tuple[int, int, int], ...]

    def views(self, data: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """(K, V) per site, each (G, H, T, D), as views of rows arranged like this tensor's."""
        return tuple(
            (_view(data, offset, shape), _view(data, offset + _size(shape), shape))
            for offset, shape in zip(self.offsets, self.shapes, strict=True)
        )


@torch.no_grad()
def project_tokens(adapter: IPAdapter, tokens: ImageTokens, device: torch.device) -> SiteKV:
    """Run every site's `to_k_ip` and `to_v_ip` over the tokens, on `device`; the result lies on the CPU.

    Raises:
        BadInputError: the result is not finite (damaged weights).
    """
    sides = torch.stack(tokens.sequences()).to(device)  # (2, T, C)
    keys, values = [], []
    for index in range(adapter.spec.num_sites):
        site = adapter.site(index)
        keys.append(site.to_k_ip(sides).cpu())
        values.append(site.to_v_ip(sides).cpu())
    if not all(tensor.isfinite().all() for tensor in (*keys, *values)):
        raise BadInputError(
            f"NaN or infinite keys or values from {adapter.spec.family}",
            expected="finite weights",
            action="the adapter file is damaged: download it again",
        )
    return SiteKV(tuple(keys), tuple(values))


def pack_sites(
    kv: SiteKV, sites: Sequence[AttentionSite], strengths: Mapping[int, SiteStrength]
) -> tuple[PackedKV, tuple[AttentionSite, ...]]:
    """Fold strengths into V and pack the sites whose strength is not 0.

    Args:
        kv: of all sites.
        sites: of the model, in checkpoint order; give the head split.
        strengths: by site index; a site not listed gets 0.

    Returns:
        The packed tensor and the sites in it, in its order. Never changes `kv`.
    """
    active = tuple(site for site in sites if site.index in strengths and strengths[site.index].value != 0)
    pieces: list[Tensor] = []
    offsets: list[int] = []
    shapes: list[tuple[int, int, int]] = []
    size = 0
    for site in active:
        strength = strengths[site.index]
        key, value = _split_heads(kv.keys[site.index], site), _split_heads(kv.values[site.index], site)
        value = value * strength.value
        if strength.swap:
            key = torch.stack((key[COND_ROW], torch.zeros_like(key[COND_ROW])))
            value = torch.stack((value[COND_ROW], torch.zeros_like(value[COND_ROW])))
        pieces += [key.flatten(1), value.flatten(1)]
        offsets.append(size)
        shapes.append((key.shape[1], key.shape[2], key.shape[3]))
        size += 2 * _size(shapes[-1])
    data = torch.cat(pieces, dim=1) if pieces else torch.empty(2, 0)
    return PackedKV(data, tuple(offsets), tuple(shapes)), active


def _split_heads(x: Tensor, site: AttentionSite) -> Tensor:
    return rearrange(x, "side t (h d) -> side h t d", h=site.heads)


def _size(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


def _view(data: Tensor, offset: int, shape: tuple[int, int, int]) -> Tensor:
    return data[:, offset : offset + _size(shape)].view(-1, *shape)
