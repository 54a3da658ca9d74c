"""`Resident`: the tensors of one plan on one device, in the form its attention needs, for one sampling run."""

# M masks, L cells of a feature map, G blocks of rows, B latents per block

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import MismatchError
from .kv import COND_ROW, UNCOND_ROW, Moment, PackedKV
from .masks import mask_to_tokens
from .plan import PatchPlan
from .rows import COND, Place, Rows
from .timed import Exchange, TimedKV

_MOST_ORDERS = 4
_MOST_FACTORS = 64  # a few for each site
_MOST_MAPS = 8  # feature maps, of which a UNet has four
_SiteViews = tuple[tuple[Tensor, Tensor], ...]
_T = TypeVar("_T")


class Resident:
    """Copies and selections of a plan's tensors, made when first asked for; several threads may ask.

    Args:
        device, dtype: those of the queries.
    """

    def __init__(self, plan: PatchPlan, device: torch.device, dtype: torch.dtype) -> None:
        self.plan = plan
        self.device, self.dtype = device, dtype
        self._lock = threading.Lock()
        self._key: Hashable = None
        self._packed: PackedKV | None = None
        self._views: OrderedDict[Hashable, _SiteViews] = OrderedDict()
        self._cells: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._masks: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._factors: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._exchanges: dict[int, tuple[Exchange, Exchange]] = {}

    @property
    def num_bytes(self) -> int:
        """What all of it takes on the device; views of one memory count once."""
        tensors = [*self._cells.values(), *self._masks.values()]
        tensors += [] if self._packed is None else [self._packed.data]
        tensors += [tensor for views in self._views.values() for pair in views for tensor in pair]
        return sum(
            {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values()
        )

    def kv(self, slot: int, rows: Rows, moment: Moment, *, each_row: bool = False) -> tuple[Tensor, Tensor]:
        """K and V of site `slot` of the plan for these rows: (G, H, T, D), or (G·B, H, T, D) if it is per frame.

        Args:
            each_row: give (G·B, H, T, D) in any case; takes memory for it only where there are several groups.
        """
        with self._lock:  # two threads may be at different windows
            return self._site_views(rows, moment, rows.latents if each_row else 1)[slot]

    def exchanges(self, slot: int, network: nn.Module) -> tuple[Exchange, Exchange]:
        """What makes queries and keys as the block norms them into such as the adapter does, at site `slot`.

        Args:
            network: the model that is sampled.
        """
        with self._lock:
            if slot not in self._exchanges:
                source, site = self.plan.kv, self.plan.sites[slot]
                assert isinstance(source, TimedKV)
                self._exchanges[slot] = source.exchanges(site, network, self.device, self.dtype)
            return self._exchanges[slot]

    def strength(self, slot: int, rows: Rows, frames: tuple[int, ...]) -> tuple[float, Tensor | None]:
        """What multiplies the attention of site `slot`: a number for all rows, and one more for each, (G·B, 1, 1)."""
        given = self.plan.strengths[slot]
        last = len(given.factors) - 1
        latents = frames if last else (0,) * rows.latents
        of_latents = [given.factors[min(frame, last)] for frame in latents]
        factors = tuple(0.0 if given.swap and side == COND else value for side in rows.sides for value in of_latents)
        if len(set(factors)) == 1:
            return factors[0], None
        with self._lock:
            return 1.0, _remember(
                self._factors,
                factors,
                _MOST_FACTORS,
                lambda: torch.tensor(factors, dtype=self.dtype)[:, None, None].to(self.device),
            )

    def mask(
        self,
        feature_map: Sequence[int],
        cells: int,
        rows: Rows,
        frames: tuple[int, ...],
        text: int = 0,
        shown: tuple[int, int] | None = None,
    ) -> Tensor | None:
        """The mask for an image branch of these rows and `cells` tokens, as (1 or G·B, L, 1); None if there is none.

        Args:
            feature_map: the site's real shape, ending in height and width.
            frames: number of each latent of a block.
            text: tokens before the picture's that take the image as well: as much as the mask does on average.
            shown: see `masks.mask_to_tokens`.

        Raises:
            MismatchError: another pack merged or split tokens, so that they are no picture.
        """
        mask = self.plan.mask
        if mask is None:
            return None
        height, width = feature_map[-2:]
        if height * width != cells:
            raise MismatchError(
                f"{cells} tokens in an attention layer whose feature map is {height} x {width}",
                expected="one token per cell, to lay the mask on",
                action="remove the mask of the IP-Adapter, or the node that merges tokens",
            )
        places, last = rows.places, len(mask) - 1
        picked = tuple(min(frame, last) for frame in frames)
        if not last and len(set(places)) == 1:  # one row serves all
            places, picked = places[:1], (0,)
        with self._lock:
            return _remember(
                self._masks,
                (height, width, places, picked, text, shown),
                _MOST_MAPS,
                lambda: _with_text(
                    torch.cat([self._mask_cells(height, width, place, shown)[list(picked)] for place in places]), text
                ),
            )

    def _mask_cells(self, height: int, width: int, place: Place | None, shown: tuple[int, int] | None) -> Tensor:
        """Every mask over the cells of a feature map, (M, L, 1): resized once, frames are picked from it."""
        plan = self.plan
        assert plan.mask is not None
        mask = plan.mask
        return _remember(
            self._cells,
            (height, width, place, shown),
            _MOST_MAPS,
            lambda: mask_to_tokens(mask, height, width, plan.resampling, place, shown).to(self.device, self.dtype),
        )

    def _site_views(self, rows: Rows, moment: Moment, latents: int) -> _SiteViews:
        source = self.plan.kv
        key = source.key(moment)
        if self._key != key:
            self._views.clear()  # of another window
            self._packed, self._key = None, key
        numbers = _numbers(rows, moment.frames if source.is_per_frame else None)
        if latents == 1 or source.is_per_frame:
            return _remember(self._views, numbers, _MOST_ORDERS, lambda: self._views_of(numbers, moment))
        if len(set(numbers)) == 1:  # one row serves all
            one, count = numbers[:1], latents * len(numbers)
            return _remember(
                self._views, (one, count), _MOST_ORDERS, lambda: _repeated(self._views_of(one, moment), count)
            )
        each = tuple(number for number in numbers for _ in range(latents))
        return _remember(self._views, each, _MOST_ORDERS, lambda: self._views_of(each, moment))

    def _views_of(self, numbers: tuple[int, ...], moment: Moment) -> _SiteViews:
        """Views of packed keys and values whose rows have these numbers.

        The usual orders need no copy; of one side alone, as models without a negative run it, only that comes here.
        """
        source, first = self.plan.kv, numbers[0]
        is_slice = numbers == tuple(range(first, first + len(numbers)))
        if isinstance(source, PackedKV):
            if not is_slice:
                return source.views(source.data[list(numbers)].to(self.device, self.dtype))
            if self._packed is None and len(numbers) < len(source.data):
                return source.views(source.data[first : first + len(numbers)].to(self.device, self.dtype))
        if self._packed is None:
            self._views.clear()  # made of parts of it
            self._packed = source.at(moment, self.device, self.dtype)
        data = self._packed.data
        return self._packed.views(data[first : first + len(numbers)] if is_slice else data[list(numbers)])


def _repeated(views: _SiteViews, count: int) -> _SiteViews:
    """Views of one row as those of many."""
    return tuple((k.expand(count, -1, -1, -1), v.expand(count, -1, -1, -1)) for k, v in views)


def _with_text(mask: Tensor, text: int) -> Tensor:
    """(R, L, 1) to (R, text + L, 1)."""
    return torch.cat((mask.mean(dim=1, keepdim=True).expand(-1, text, -1), mask), dim=1) if text else mask


def _numbers(rows: Rows, frames: tuple[int, ...] | None) -> tuple[int, ...]:
    """Which rows of packed keys and values a batch needs, in its order."""
    sides = [COND_ROW if side == COND else UNCOND_ROW for side in rows.sides]
    if frames is None:
        return tuple(sides)
    return tuple(side * len(frames) + position for side in sides for position in range(len(frames)))


def _remember(memo: OrderedDict[Hashable, _T], key: Hashable, most: int, make: Callable[[], _T]) -> _T:
    if key not in memo:
        while len(memo) >= most:
            memo.popitem(last=False)
        memo[key] = make()
    return memo[key]
