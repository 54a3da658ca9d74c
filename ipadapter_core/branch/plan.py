"""`PatchPlan`: everything an applied adapter does while sampling; and `ResidentPlan`, its tensors on the device."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..backbone.sites import Site
from ..errors import MismatchError
from .kv import COND_ROW, UNCOND_ROW, PackedKV
from .masks import AREA, mask_for_batch, mask_to_tokens
from .schedule import SigmaRange

COND = 0  # index of the cond entry in ComfyUI's cond_or_uncond; every other index is a kind of uncond
_MOST_ORDERS = 4
_SiteViews = tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True, eq=False)
class PatchPlan:
    """One adapter, one set of tokens, on one model. Immutable.

    Attributes:
        sites: the sites it patches, in the order of `kv`.
        kv: their keys and values, strengths folded in.
        sigmas: when it acts; None is always.
        mask: (M, H, W) where it acts, 0..1; None is everywhere.
        resampling: how the mask is brought to a feature map; see `masks.mask_to_tokens`.
    """

    sites: tuple[Site, ...]
    kv: PackedKV
    sigmas: SigmaRange | None = None
    mask: Tensor | None = None
    resampling: str = AREA

    @property
    def is_per_frame(self) -> bool:
        """The latents of a batch get different tokens or masks, so it matters which frames they are."""
        return self.kv.frames > 1 or (self.mask is not None and len(self.mask) > 1)


@dataclass(eq=False)
class ResidentPlan:
    """A plan's tensors in the form the attention needs them, made at first use and kept until `release`.

    Holds nothing but values derived from the plan, so that clones of a model may share it.
    """

    plan: PatchPlan
    _kv: dict[tuple[object, ...], _SiteViews] = field(default_factory=dict)
    _whole: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict)
    _masks: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    _gate: tuple[Tensor, Tensor] | None = None

    def release(self) -> None:
        """Free the device copies; the next use makes them again."""
        self._kv.clear()
        self._whole.clear()
        self._masks.clear()
        self._gate = None

    def kv(
        self, slot: int, conditions: Sequence[int], like: Tensor, frames: tuple[int, ...] | None = None
    ) -> tuple[Tensor, Tensor]:
        """K and V of site `slot` of the plan for this batch, each (G, H, T, D); (G·B, H, T, D) if it has frames.

        Args:
            conditions: `cond_or_uncond`, one entry per conditioning group in batch order.
            like: gives device and dtype, both those of q.
            frames: number of each latent of a group, for a plan that is per frame.
        """
        key = (like.device, like.dtype, tuple(conditions), frames)
        views = self._kv.get(key)
        if views is None:
            if len(self._kv) >= _MOST_ORDERS:
                self._kv.clear()
            views = self._kv[key] = self.plan.kv.views(self._rows(conditions, like, frames))
        return views[slot]

    def gate(self, sigmas: Tensor | None, like: Tensor) -> Tensor | None:
        """Whether the adapter acts at this step, as a 0-dim 0 or 1 like `like`; None if it always acts.

        Args:
            sigmas: of this step, the same object for all sites of a step; None outside a sampler.
        """
        if self.plan.sigmas is None or sigmas is None:
            return None
        if self._gate is None or self._gate[0] is not sigmas:
            self._gate = (sigmas, self.plan.sigmas.gate(sigmas).to(like.device, like.dtype))
        return self._gate[1]

    def mask(
        self, feature_map: Sequence[int], like: Tensor, groups: int, frames: tuple[int, ...] | None = None
    ) -> Tensor | None:
        """The mask for an image branch `like` (G·B, L, C), as (1 or G·B, L, 1); None if there is none.

        Args:
            feature_map: the site's real shape, ending in height and width.
            frames: number of each latent of a group, where they are not 0, 1, 2 …

        Raises:
            MismatchError: another pack merged or split tokens, so that L is no picture.
        """
        if self.plan.mask is None:
            return None
        height, width = feature_map[-2:]
        key = (height, width, like.shape[0], groups, frames, like.device, like.dtype)
        mask = self._masks.get(key)
        if mask is None:
            if height * width != like.shape[1]:
                raise MismatchError(
                    f"{like.shape[1]} tokens in an attention layer whose feature map is {height} x {width}",
                    expected="one token per cell, to lay the mask on",
                    action="remove the mask from IPAApply, or the node that merges tokens",
                )
            tokens = mask_to_tokens(self.plan.mask, height, width, self.plan.resampling)
            tokens = mask_for_batch(tokens, like.shape[0], groups, frames)
            mask = self._masks[key] = tokens.to(like.device, like.dtype)
        return mask

    def _rows(self, conditions: Sequence[int], like: Tensor, frames: tuple[int, ...] | None) -> Tensor:
        rows = [COND_ROW if condition == COND else UNCOND_ROW for condition in conditions]
        count = self.plan.kv.frames
        if count > 1:
            assert frames is not None
            rows = [side * count + min(frame, count - 1) for side in rows for frame in frames]
        first = rows[0]
        if rows == list(range(first, first + len(rows))):
            return self._on(like)[first : first + len(rows)]
        # frames change from window to window: picked where they lie on the device, not sent there every time
        source = self.plan.kv.data if count == 1 else self._on(like)
        return source[rows].to(like.device, like.dtype)

    def _on(self, like: Tensor) -> Tensor:
        """All rows on the device of `like`, copied once."""
        whole = self._whole.get((like.device, like.dtype))
        if whole is None:
            whole = self._whole[like.device, like.dtype] = self.plan.kv.data.to(like.device, like.dtype)
        return whole
