"""`Recording`: what a sampling's adapters add, gathered while it runs; `Record`: what is left of the latest one."""

# G blocks of rows, B latents per block; P parts, L tokens of a feature map, C channels, S steps

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .heat import HeatMaps, References, on_latent, shares, step_of_level
from .plan import PatchPlan
from .rows import COND, Place, Rows
from .timed import TimedKV

_WHOLE = References()


@dataclass(frozen=True)
class Shown:
    """What a call of an attention layer shows.

    Attributes:
        evaluation: equal for calls at one noise level that belong together.
        frames: number of each latent of a block among all that are sampled.
        size: height and width of what the model is called with, in cells of the latent.
        grid: height and width of the feature map; the tokens of several pictures lie one behind the other.
        covers: cells of the latent that the feature map is for.
    """

    evaluation: Hashable
    frames: tuple[int, ...]
    size: tuple[int, int]
    grid: tuple[int, int]
    covers: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Addition:
    """What a plan adds at a site.

    Attributes:
        slot: of the site in the plan.
        rows: whose they are.
        image: (G·B, L, C), for the tokens of the picture.
        parts, weight, held: as those of `shares`; a weight has G·B rows or one.
    """

    plan: PatchPlan
    slot: int
    rows: Rows
    image: Tensor
    parts: Sequence[Tensor] = ()
    weight: Tensor | None = None
    held: Tensor | None = None


@dataclass(frozen=True)
class _Key:
    """Additions that are summed on the device."""

    plan: PatchPlan
    shown: Shown
    place: Place | None
    device: torch.device


class Recording:
    """One sampling's. Threads of several devices may add to it; nothing is read off a device before the end.

    Args:
        plans: whose additions are recorded.
    """

    def __init__(self, plans: Sequence[PatchPlan]) -> None:
        self._plans = tuple(plans)
        self._lock = threading.Lock()
        self._sums: dict[_Key, Tensor] = {}
        self._calls: Counter[_Key] = Counter()
        self._levels: dict[Hashable, Tensor | None] = {}
        self._columns: dict[tuple[object, ...], Tensor] = {}
        self.fault = ""  # why it is not whole; empty if it is

    def parts(
        self, plan: PatchPlan, slot: int, value: Tensor, attend: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        """What a site's attention gives for the values of one reference alone: for all but the last part.

        Args:
            value: of the image tokens, (…, T, D).
            attend: the attention, its image values multiplied by a number (T,) for each token.
        """
        references = _of_site(plan, slot)
        tokens = value.shape[-2]
        key = (references, tokens, value.device, value.dtype)
        with self._lock:
            if key not in self._columns:
                self._columns[key] = references.columns(tokens).to(value.device, value.dtype)
            columns = self._columns[key]
        count = references.count - (0 if isinstance(plan.kv, TimedKV) else 1)  # the last is what remains
        return tuple(attend(column) for column in columns[:count])

    def add(self, made: Addition, shown: Shown, level: Tensor | None) -> None:
        """Note what was added at a site.

        Args:
            level: the noise level, 0-dim; None where nobody said it.
        """
        plan, rows, weight = made.plan, made.rows, made.weight
        if len(shown.frames) != rows.latents:
            self.fault = "another node split the batch of latents, so that nobody knows whose picture is whose"
            return
        cells = shown.grid[0] * shown.grid[1]
        if made.image.shape[1] % cells:
            self.fault = "another node merged or split the tokens of the picture, so that they are no picture"
            return
        references = _of_site(plan, made.slot)
        for number, block in enumerate(rows.blocks):
            if block.side != COND:
                continue
            of_block = slice(number * rows.latents, (number + 1) * rows.latents)
            of_rows = weight[of_block] if weight is not None and weight.ndim and len(weight) > 1 else weight
            held = made.held if made.held is None else made.held[of_block]
            found = shares(made.image[of_block], [part[of_block] for part in made.parts], of_rows, held)
            if found.shape[-1] > cells:
                found = found.view(*found.shape[:2], -1, cells).sum(dim=2)
            key = _Key(plan, shown, block.place, made.image.device)
            with self._lock:
                if shown.evaluation not in self._levels:
                    self._levels[shown.evaluation] = None if level is None else level.clone()
                if key not in self._sums:
                    self._sums[key] = found.new_zeros(_num_parts(plan), *found.shape[1:])
                self._calls[key] += 1
                total = self._sums[key]
                total[references.first : references.first + references.count].add_(found[: references.count])
                if len(found) > references.count:  # the picture's own
                    total[-1].add_(found[-1])

    def maps(self, levels: Sequence[float]) -> HeatMaps:
        """All of it, on the CPU.

        Where a pixel of a step was asked several times (windows that overlap, several prompts, samplers that ask the model
        twice), it has the mean.

        Args:
            levels: the noise levels of the sampler, one more than steps.
        """
        sums, read = self._read()
        frames = 1 + max((frame for key in sums for frame in key.shown.frames), default=0)
        size = next((_size(key) for key in sums), (1, 1))
        steps = max(len(levels) - 1, 1)
        made = {plan: torch.zeros(steps, _num_parts(plan), frames, *size) for plan in self._plans}
        times = {plan: torch.zeros(steps, frames, *size) for plan in self._plans}
        for key, numbers in sums.items():
            level = read[key.shown.evaluation]
            step = 0 if level is None or steps < 2 else step_of_level(level, levels)
            shown = key.shown
            place = key.place or Place(0, 0, *size, size)
            within = (..., slice(place.top, place.top + place.height), slice(place.left, place.left + place.width))
            here = on_latent(numbers, shown.grid, shown.covers, shown.size)
            of_frames = torch.tensor(shown.frames)
            made[key.plan][step][within].index_add_(1, of_frames, here)
            asked = torch.full(here.shape[1:], self._calls[key] / len(key.plan.sites))
            times[key.plan][step][within].index_add_(0, of_frames, asked)
        return HeatMaps(
            tuple(made[plan] / torch.where(times[plan] == 0, 1, times[plan])[:, None] for plan in self._plans),
            tuple(_num_references(plan) for plan in self._plans),
        )

    def _read(self) -> tuple[dict[_Key, Tensor], dict[Hashable, float | None]]:
        """Sums and noise levels on the CPU, with one copy per device."""
        sums: dict[_Key, Tensor] = {}
        for device in {key.device for key in self._sums}:
            keys = [key for key in self._sums if key.device == device]
            flat = torch.cat([self._sums[key].flatten() for key in keys]).cpu()
            parts = torch.split(flat, [self._sums[key].numel() for key in keys])
            sums |= {key: part.view(self._sums[key].shape) for key, part in zip(keys, parts, strict=True)}
        read: dict[Hashable, float | None] = dict.fromkeys(self._levels)
        known = {evaluation: level for evaluation, level in self._levels.items() if level is not None}
        if known:
            device = next(iter(known.values())).device
            values = torch.stack([level.to(device, torch.float64) for level in known.values()]).tolist()
            read |= dict(zip(known, values, strict=True))
        return sums, read


class Record:
    """What is left of the latest sampling of a model.

    Attributes:
        maps: None where there was none, or where it was not whole.
        fault: why it was not; empty if there was none.
    """

    def __init__(self) -> None:
        self.maps: HeatMaps | None = None
        self.fault = ""

    def __deepcopy__(self, _memo: object) -> "Record":
        """Itself: packs copy a model's options whole, and what is recorded is asked of this one."""
        return self

    def begin(self) -> None:
        """Forget what was, until a new sampling is through."""
        self.maps, self.fault = None, "it was broken off"

    def end(self, recording: Recording, levels: Sequence[float]) -> None:
        """Keep what a sampling that is through has left."""
        self.fault = recording.fault
        self.maps = None if recording.fault else recording.maps(levels)


def _of_site(plan: PatchPlan, slot: int) -> References:
    return plan.references[slot] if plan.references else _WHOLE


def _num_references(plan: PatchPlan) -> int:
    return max((each.first + each.count for each in plan.references), default=1)


def _num_parts(plan: PatchPlan) -> int:
    return _num_references(plan) + isinstance(plan.kv, TimedKV)


def _size(key: _Key) -> tuple[int, int]:
    return key.shown.size if key.place is None else key.place.whole
