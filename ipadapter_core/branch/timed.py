"""Keys and values of adapters whose tokens change with the noise level: their network runs at every step.

Their attention runs over the picture's own keys too, so a strength multiplies what it gives and not the values.
"""

# R references, N tokens per reference, S feature positions, E encoder dim, F frames, C token dim, H heads, D head dim

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..backbone.registry import find_backbone
from ..backbone.row import TimedSites
from ..backbone.sites import Site
from ..errors import BadInputError
from ..network.adapter import IPAdapter
from ..strength.site import AnyStrength
from .kv import Moment, PackedKV
from .tokens import ImageTokens

Exchange = Callable[[Tensor], Tensor]  # (…, D) to (…, D)


def exchange(block: Tensor | None, adapter: Tensor, epsilon: float) -> Exchange:
    """What makes queries or keys that a block gives into such as an adapter norms.

    A root mean square norm does not see how long its input is, so that another's weights can be put in place of a block's.

    Args:
        block: weights (D,) of the norm they went through; None is none.
        adapter: weights (D,) of the norm they are to have gone through, in their dtype.
        epsilon: of both norms.
    """
    if block is None:
        return partial(functional.rms_norm, normalized_shape=list(adapter.shape), weight=adapter, eps=epsilon)
    wide = torch.promote_types(adapter.dtype, torch.float32)
    block = block.to(adapter.device, wide)
    factor = torch.where(block == 0, torch.zeros_like(block), adapter.to(wide) / block)  # 0: what was there is gone
    return partial(torch.mul, factor.to(adapter.dtype))


def joint_attention(
    q: Tensor, own: tuple[Tensor, Tensor], images: tuple[Tensor, Tensor], attention: Callable[..., Tensor]
) -> Tensor:
    """Attend from a picture to itself and to the image tokens.

    Args:
        q: (G·B, L, H, D), groups outermost.
        own: the picture's keys and values, each as `q`.
        images: (G·B, T, H, D) each.
        attention: of (G·B, H, …, D) each.

    Returns:
        What the attention gives.
    """
    key, value = (torch.cat(pair, dim=1).transpose(1, 2) for pair in zip(own, images, strict=True))
    return attention(q.transpose(1, 2), key, value)


@dataclass(frozen=True, eq=False)
class TimedKV:
    """A `KVSource` whose network reads the noise level.

    Attributes:
        sites: those that are patched.
        strengths: by site index; only which side takes the image is asked of them.
        adapter: its weights must be where ComfyUI puts them for sampling.
        tokens: by site index; features, as they are before the network.
        is_per_frame: reference i is for frame i, the last one serves all further frames; else all act together.

    Raises:
        BadInputError: more negatives than references.
    """

    sites: tuple[Site, ...]
    strengths: Mapping[int, AnyStrength]
    adapter: IPAdapter
    tokens: Mapping[int, ImageTokens]
    is_per_frame: bool = False

    def __post_init__(self) -> None:
        for tokens in set(self.tokens.values()):
            cond, uncond = len(tokens.mixes.cond), len(tokens.mixes.uncond)
            if uncond > cond:
                raise BadInputError(
                    f"{uncond} pictures to move away from, for {cond} references",
                    expected=f"at most one for each reference, as {self.adapter.spec.family} compares them",
                    action="connect fewer negative pictures, or more references",
                )

    def key(self, moment: Moment, /) -> Hashable:
        return (moment.evaluation, moment.frames) if self.is_per_frame else moment.evaluation

    @torch.no_grad()
    def at(self, moment: Moment, /, device: torch.device, dtype: torch.dtype) -> PackedKV:
        """K and V of this noise level; each is (T, H, D) where those of other sources are (H, T, D)."""
        made = {of: self._tokens_at(of, moment, device, dtype) for of in set(self.tokens.values())}
        data, offset = None, 0
        offsets, shapes = [], []
        for site in self.sites:
            tokens, gain, time = made[self.tokens[site.index]]
            if self.strengths[site.index].swap:
                tokens, gain = (
                    x[len(x) // 2 :].repeat(2, 1, 1) for x in (tokens, gain)
                )  # no strength on the cond side
            key, value = self.adapter.timed_kv(site.index, tokens, time)
            pair = key, value * gain[..., None]
            rows, count, heads, head_dim = key.shape
            if data is None:
                data = torch.empty(rows, self._row_size(), device=device, dtype=dtype)
            offsets.append(offset)
            shapes.append((count, heads, head_dim))
            for part in pair:
                data[:, offset : offset + part[0].numel()] = part.flatten(1)
                offset += part[0].numel()
        return PackedKV(torch.empty(2, 0) if data is None else data, tuple(offsets), tuple(shapes))

    def num_bytes(self, latents: int, element_size: int, /) -> int:
        rows = 2 * latents if self.is_per_frame else 2
        return rows * element_size * self._row_size()

    def exchanges(
        self, site: Site, network: nn.Module, device: torch.device, dtype: torch.dtype
    ) -> tuple[Exchange, Exchange]:
        """`exchange` of the queries and of the keys of a site, of the model `network`."""
        timed = self._timed
        ours = timed.adapter_norms(cast(nn.Module, self.adapter.site(site.index)))
        query, key = (
            exchange(theirs, weight.to(device, dtype), timed.epsilon)
            for theirs, weight in zip(timed.block_norms(network, site.address), ours, strict=True)
        )
        return query, key

    @property
    def _timed(self) -> TimedSites:
        spec = self.adapter.spec
        timed = find_backbone(spec.backbone).layout(spec.layout).timed
        assert timed is not None
        return timed

    def _row_size(self) -> int:
        per_reference = self.adapter.spec.num_tokens or 0
        return sum(
            2 * site.dim * per_reference * (1 if self.is_per_frame else self.tokens[site.index].num_references)
            for site in self.sites
        )

    def _tokens_at(
        self, of: ImageTokens, moment: Moment, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (2·F, T, C), uncond rows, then cond rows; (2·F, T, 1), by which their values are multiplied; and the
        noise level's vector (1, W), through SiLU.

        A site norms the tokens, and so sees nothing of how long factors made them: the values are given that back.
        """
        sides = (of.mixes.uncond, of.mixes.cond)
        numbers = moment.frames if self.is_per_frame else range(of.num_references)
        picked = [[side[min(number, len(side) - 1)] for number in numbers] for side in sides]  # F rows of R each
        used = [[column for column in range(len(side[0])) if any(row[column] for row in side)] for side in picked]

        def features() -> Tensor:
            return torch.cat((of.uncond[used[0]], of.cond[used[1]])).to(device)

        read = features() if self.is_per_frame else moment.kept(("features", of, device), features)
        # the residual stream of a resampler may leave float16's range
        tokens, time = self.adapter.timed_tokens(read.to(torch.promote_types(dtype, torch.float32)), moment.timestep)
        parts = (
            torch.tensor([[row[column] for column in columns] for row in side], dtype=torch.float64)
            for side, columns in zip(picked, used, strict=True)
        )
        mix: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]
        rows = torch.tensordot(mix.to(tokens), tokens, dims=1).to(dtype)
        gain = mix.abs().sum(dim=1).to(rows)[:, None, None].expand(*rows.shape[:2], 1)
        if not self.is_per_frame:
            rows, gain = (x.reshape(2, -1, x.shape[-1]) for x in (rows, gain))
        return rows, gain, functional.silu(time).to(dtype)
