"""Keys and values that differ from frame to frame, made for the frames of one forward: the window, not the animation."""

# F frames in all, W frames of a window, T tokens, C cross-attention dim

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..backbone.sites import Site
from ..network.adapter import IPAdapter
from ..strength.scaling import VALUE_ONLY, Scaling
from ..strength.site import AnyStrength, FrameStrength
from .kv import Moment, PackedKV, SiteKV, pack_sites
from .tokens import ImageTokens


@dataclass(frozen=True, eq=False)
class FrameKV:
    """A `KVSource` of which every frame has its own tokens, its own strengths, or both.

    Attributes:
        sites: those that are patched.
        strengths: by site index; a frame beyond the factors of one has the last of them.
        adapter: projects tokens; its weights must be where ComfyUI puts them for sampling.
        tokens: by site index; reference i is for frame i, the last one serves all further frames.
        shared: keys and values that all frames have in common, in place of tokens.
        key_weights: as those of `pack_sites`.
    """

    sites: tuple[Site, ...]
    strengths: Mapping[int, AnyStrength]
    adapter: IPAdapter
    tokens: Mapping[int, ImageTokens]
    shared: SiteKV | None = None
    scaling: Scaling = VALUE_ONLY
    key_weights: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def is_per_frame(self) -> bool:
        return True

    def key(self, moment: Moment, /) -> Hashable:
        return moment.frames

    @torch.no_grad()
    def at(self, moment: Moment, /, device: torch.device, dtype: torch.dtype) -> PackedKV:
        """K and V of the frames of this moment, in their order."""
        frames = moment.frames
        strengths = {site.index: _picked(self.strengths[site.index], frames) for site in self.sites}
        sides = {tokens: _sides(tokens, frames).to(device) for tokens in set(self.tokens.values())}
        parts = [
            pack_sites(self._site_kv(site, frames, sides, device), (site,), strengths, self.scaling, self.key_weights)
            for site in self.sites
        ]
        offsets, size = [], 0
        for part in parts:
            offsets.append(size)
            size += part.data.shape[1]
        data = torch.empty(2 * len(frames), size, device=device, dtype=dtype)
        for part, offset in zip(parts, offsets, strict=True):
            data[:, offset : offset + part.data.shape[1]] = part.data
        return PackedKV(data, tuple(offsets), tuple(part.shapes[0] for part in parts))

    def num_bytes(self, latents: int, element_size: int, /) -> int:
        lengths = {site.index: self._length(site) for site in self.sites}
        return 2 * latents * element_size * sum(2 * lengths[site.index] * site.dim for site in self.sites)

    def _length(self, site: Site) -> int:
        if self.shared is not None:
            return int(self.shared.keys[site.index].shape[1])
        return int(self.tokens[site.index].cond.shape[1])

    def _site_kv(
        self, site: Site, frames: tuple[int, ...], sides: Mapping[ImageTokens, Tensor], device: torch.device
    ) -> SiteKV:
        if self.shared is not None:
            rows = [side for side in range(2) for _ in frames]
            key, value = (part[site.index].to(device)[rows] for part in (self.shared.keys, self.shared.values))
            tokens = self.shared.tokens
        else:
            given = self.tokens[site.index]
            key, value = self.adapter.kv(site.index, sides[given])
            tokens = given.cond.shape[1]
        return SiteKV({site.index: key}, {site.index: value}, tokens)


def _sides(tokens: ImageTokens, frames: tuple[int, ...]) -> Tensor:
    """(2·W, T, C): the negatives of these frames, then their images."""
    return torch.cat([side[[min(frame, len(side) - 1) for frame in frames]] for side in (tokens.uncond, tokens.cond)])


def _picked(strength: AnyStrength, frames: tuple[int, ...]) -> AnyStrength:
    if not isinstance(strength, FrameStrength):
        return strength
    last = len(strength.factors) - 1
    return replace(strength, factors=tuple(strength.factors[min(frame, last)] for frame in frames))
