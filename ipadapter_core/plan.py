"""`PatchPlan`: everything an applied adapter does while sampling; and `ResidentPlan`, its tensors on the device."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .errors import MismatchError
from .kv import COND_ROW, UNCOND_ROW, PackedKV
from .masks import mask_for_batch, mask_to_tokens
from .schedule import SigmaRange
from .sites import AttentionSite

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
    """

    sites: tuple[AttentionSite, ...]
    kv: PackedKV
    sigmas: SigmaRange | None = None
    mask: Tensor | None = None


@dataclass(eq=False)
class ResidentPlan:
    """A plan's tensors in the form the attention needs them, made at first use and kept until `release`.

    Holds nothing but values derived from the plan, so that clones of a model may share it.
    """

    plan: PatchPlan
    _kv: dict[tuple[torch.device, torch.dtype, tuple[int, ...]], _SiteViews] = field(default_factory=dict)
    _whole: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict)
    _masks: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    _gate: tuple[Tensor, Tensor] | None = None

    def release(self) -> None:
        """Free the device copies; the next use makes them again."""
        self._kv.clear()
        self._whole.clear()
        self._masks.clear()
        self._gate = None

    def kv(self, slot: int, conditions: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """K and V of site `slot` of the plan for this batch, each (G, H, T, D).

        Args:
            conditions: `cond_or_uncond`, one entry per conditioning group in batch order.
            like: gives device and dtype, both those of q.
        """
        key = (like.device, like.dtype, tuple(conditions))
        views = self._kv.get(key)
        if views is None:
            if len(self._kv) >= _MOST_ORDERS:
                self._kv.clear()
            views = self._kv[key] = self.plan.kv.views(self._rows(conditions, like))
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

    def mask(self, feature_map: Sequence[int], like: Tensor, groups: int) -> Tensor | None:
        """The mask for an image branch `like` (G·B, L, C), as (1 or G·B, L, 1); None if there is none.

        Args:
            feature_map: the site's real shape, ending in height and width.

        Raises:
            MismatchError: another pack merged or split tokens, so that L is no picture.
        """
        if self.plan.mask is None:
            return None
        height, width = feature_map[-2:]
        key = (height, width, like.shape[0], groups, like.device, like.dtype)
        mask = self._masks.get(key)
        if mask is None:
            if height * width != like.shape[1]:
                raise MismatchError(
                    f"{like.shape[1]} tokens in an attention layer whose feature map is {height} x {width}",
                    expected="one token per cell, to lay the mask on",
                    action="remove the mask from IPAApply, or the node that merges tokens",
                )
            tokens = mask_for_batch(mask_to_tokens(self.plan.mask, height, width), like.shape[0], groups)
            mask = self._masks[key] = tokens.to(like.device, like.dtype)
        return mask

    def _rows(self, conditions: Sequence[int], like: Tensor) -> Tensor:
        rows = [COND_ROW if condition == COND else UNCOND_ROW for condition in conditions]
        first = rows[0]
        if rows != list(range(first, first + len(rows))):
            return self.plan.kv.data[rows].to(like.device, like.dtype)
        whole = self._whole.get((like.device, like.dtype))
        if whole is None:
            whole = self._whole[like.device, like.dtype] = self.plan.kv.data.to(like.device, like.dtype)
        return whole[first : first + len(rows)]
