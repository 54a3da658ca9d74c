"""Keys and values of the image tokens, computed once per site and packed into one tensor.

Image tokens do not change over the sampling steps, so nothing of the adapter's network is needed while sampling.
"""

# T image tokens in all, C cross-attention dim, H heads, D head dim, P numbers packed per row
# F frames: 1, or one set of tokens for every latent of a batch; rows: uncond of every frame, then cond of every frame

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class SiteKV:
    """K and V of every site of one adapter for one set of tokens, or one set per frame.

    Attributes:
        keys, values: per site in checkpoint order, each (2·F, T, H·D): uncond rows, then cond rows.
        tokens: image tokens per reference, of which T is a multiple; None is T.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    tokens: int | None = None

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


@dataclass(frozen=True, eq=False)
class PackedKV:
    """K and V of the sites a plan patches, heads split, strengths folded in.

    Attributes:
        data: (2·F, P), uncond rows, then cond rows. In this order the rows are the batch that ComfyUI samples
            (`cond_or_uncond == [1, 0]`), which then needs no copy.
        offsets: start of each site inside a row; its K comes first, then its V.
        shapes: (H, T, D) of each site.
    """

    data: Tensor
    offsets: tuple[int, ...]
    shapes: tuple[tuple[int, int, int], ...]

    @property
    def frames(self) -> int:
        return len(self.data) // 2

    def views(self, data: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """(K, V) per site, each (G, H, T, D), as views of rows arranged like this tensor's."""
        return tuple(
            (_view(data, offset, shape), _view(data, offset + _size(shape), shape))
            for offset, shape in zip(self.offsets, self.shapes, strict=True)
        )


@torch.no_grad()
def project_tokens(adapter: IPAdapter, tokens: ImageTokens, device: torch.device, *, per_frame: bool = False) -> SiteKV:
    """Run every site's `to_k_ip` and `to_v_ip` over the tokens, on `device`; the result lies on the CPU.

    Args:
        per_frame: every reference is a frame of its own; else all of them act together.

    Raises:
        BadInputError: the result is not finite (damaged weights).
    """
    rows = tokens.frames() if per_frame else tokens.sequences()
    sides = (torch.cat(rows) if per_frame else torch.stack(rows)).to(device)  # (2·F, T, C)
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
    return SiteKV(tuple(keys), tuple(values), tokens.cond.shape[1])


def pack_sites(
    kv: SiteKV,
    sites: Sequence[Site],
    strengths: Mapping[int, AnyStrength],
    scaling: Scaling = VALUE_ONLY,
) -> tuple[PackedKV, tuple[Site, ...]]:
    """Fold strengths in and pack the sites whose strength is not 0.

    Args:
        kv: of all sites.
        sites: of the model, in checkpoint order; give the head split.
        strengths: by site index; a site not listed gets 0.
        scaling: what a strength multiplies.

    Returns:
        The packed tensor and the sites in it, in its order; as many frames as `kv` or the longest strength has, the
        shorter ones with their last repeated. Never changes `kv`.
    """
    active = tuple(site for site in sites if site.index in strengths and any(strengths[site.index].factors))
    frames = max((len(strengths[site.index].factors) for site in active), default=1)
    frames = max([frames, *(len(key) // 2 for key in kv.keys)])
    pieces: list[Tensor] = []
    offsets: list[int] = []
    shapes: list[tuple[int, int, int]] = []
    size = 0
    for site in active:
        strength = strengths[site.index]
        key, value = _over_frames(kv.keys[site.index], frames), _over_frames(kv.values[site.index], frames)
        weight = _over_frames(value.new_tensor(strength.factors).repeat(2)[:, None, None], frames)
        key, value = scaling.apply(key, value, weight, kv.tokens or key.shape[1])
        if strength.swap:
            key, value = (torch.cat((x[frames:], torch.zeros_like(x[frames:]))) for x in (key, value))
        key, value = _split_heads(key, site), _split_heads(value, site)
        pieces += [key.flatten(1), value.flatten(1)]
        offsets.append(size)
        shapes.append((key.shape[1], key.shape[2], key.shape[3]))
        size += 2 * _size(shapes[-1])
    data = torch.cat(pieces, dim=1) if pieces else torch.empty(2 * frames, 0)
    return PackedKV(data, tuple(offsets), tuple(shapes)), active


def _over_frames(x: Tensor, frames: int) -> Tensor:
    """(2·f, …) to (2·frames, …), the last frame of each side repeated."""
    have = len(x) // 2
    if have == frames:
        return x
    side = torch.arange(frames).clamp_max(have - 1)
    return x[torch.cat((side, have + side))]


def _split_heads(x: Tensor, site: Site) -> Tensor:
    return rearrange(x, "row t (h d) -> row h t d", h=site.heads)


def _size(shape: tuple[int, int, int]) -> int:
    return shape[0] * shape[1] * shape[2]


def _view(data: Tensor, offset: int, shape: tuple[int, int, int]) -> Tensor:
    return data[:, offset : offset + _size(shape)].view(-1, *shape)
