"""`Run` and `Step`: what belongs to one sampling, and to one call of the model in it. `wrappers` makes them."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules import attention as comfy_attention
from torch import Tensor, nn

from ...ipadapter_core.backbone.row import Place
from ...ipadapter_core.backbone.sites import Address, Site
from ...ipadapter_core.branch.attention import AttentionFunction, add_image_attention, image_attention, weight_of
from ...ipadapter_core.branch.plan import PatchPlan
from ...ipadapter_core.branch.recording import Addition, Recording
from ...ipadapter_core.branch.resident import Resident
from ...ipadapter_core.branch.rows import Group, Rows, attention_rows, batch_rows
from ...ipadapter_core.branch.schedule import SigmaCurve, SigmaRange, curve_in_sigmas
from ...ipadapter_core.errors import MismatchError
from .applied import KEY, Applied, applied_to
from .conditionings import by_number
from .noting import before_guard, held_back, note, parts_of

logger = logging.getLogger(__name__)

STEP = f"{KEY}_step"  # in transformer_options
_WHOLE_SHAPE = 4  # dimensions of a feature map with its rows


class Run:
    """One sampling, on one or several devices.

    Args:
        applied: what adapters do on the model.
        model_sampling: the noise schedule it is sampled with; None where that is unknown, and plans always act.
        guider: whose conditionings are sampled; None for a call of the model outside a sampler.
        recording: gathers what the plans add; None is nobody.
    """

    def __init__(
        self, applied: Applied | None, model_sampling: Any, guider: Any = None, recording: Recording | None = None
    ) -> None:
        self.guider, self.model_sampling, self.recording = guider, model_sampling, recording
        self.is_compiled: bool | None = None  # not known before the first call of the model
        # asked of the schedule here, as it reads numbers off the device
        self._ranges = {
            plan: plan.acting.sigmas(model_sampling.percent_to_sigma)
            for plan in (applied.plans if applied else ())
            if plan.acting is not None and model_sampling is not None
        }
        self._curves = {
            plan: curve_in_sigmas(plan.curve, model_sampling.percent_to_sigma, float(model_sampling.sigma_max))
            for plan in (applied.plans if applied else ())
            if plan.curve is not None and model_sampling is not None
        }
        self._lock = threading.Lock()  # of several devices, each has a thread
        self._residents: dict[tuple[object, ...], Resident] = {}
        self._said: set[str] = set()
        self._kept: dict[Hashable, Tensor] = {}

    def __deepcopy__(self, _memo: object) -> "Run":
        """Itself: packs copy a model's options whole, but there is only one sampling."""
        return self

    def resident(self, plan: PatchPlan, device: torch.device, dtype: torch.dtype) -> Resident:
        """The plan's tensors on a device."""
        key = (plan, device, dtype)
        with self._lock:
            if key not in self._residents:
                self._residents[key] = Resident(plan, device, dtype)
            return self._residents[key]

    def kept(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, made once for a key."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
            return self._kept[key]

    def sigmas(self, plan: PatchPlan) -> SigmaRange | None:
        """When a plan acts; None is always."""
        return self._ranges.get(plan)

    def curve(self, plan: PatchPlan, device: torch.device) -> SigmaCurve | None:
        """How a plan's strength changes; None is not at all."""
        with self._lock:
            curve = self._curves.get(plan)
            if curve is not None and curve.sigmas.device != device:
                curve = self._curves[plan] = curve.to(device)
            return curve

    def warn_once(self, message: str) -> None:
        with self._lock:
            if message in self._said:
                return
            self._said.add(message)
        logger.warning(message)

    @property
    def num_bytes(self) -> int:
        """What the plans' tensors take on all devices now."""
        with self._lock:
            kept = sum(tensor.nbytes for tensor in self._kept.values())
            return kept + sum(resident.num_bytes for resident in self._residents.values())


class Step:
    """One call of the model: which rows are whose, and what follows from its sigma. Belongs to one thread.

    Args:
        options: ComfyUI's `transformer_options`. Packs lengthen its `cond_or_uncond` in place along with the rows.
        rows: of the batch the model was called with; None where nobody said how many there are.
        groups: what each number of `cond_or_uncond` stands for.
        latents: how many are sampled; None where nobody said it.
        size: height and width of what the model is called with.
        is_partial: the model is shown a part of the picture, and nobody said which.
        evaluation: what the sampler asked for, of which this call is all or a part; None where nobody said it.
    """

    def __init__(
        self,
        run: Run,
        options: Mapping[str, Any],
        rows: Rows | None = None,
        groups: Mapping[int, Group] | None = None,
        latents: int | None = None,
        size: tuple[int, int] = (0, 0),
        is_partial: bool = False,
        evaluation: Hashable = None,
    ) -> None:
        self.run = run
        self._batch, self._groups = rows, groups or {}
        self.size = size
        self.evaluation: Hashable = self if evaluation is None else evaluation
        self._latents, self.is_partial = latents, is_partial
        self._options, self._applied = options, applied_to(options)
        self.is_compiled = False
        self.left: dict[str, Any] = {}  # what parts of the network leave for those that run later
        self._calls: Counter[tuple[Place, str]] = Counter()
        self._numbers: Sequence[int] = options.get("cond_or_uncond") or (0,)
        self._window, self._sigmas = window_of(options), options.get("sigmas")
        self._rows: dict[tuple[object, ...], Rows] = {}
        self._gates: dict[tuple[object, ...], Tensor] = {}

    def __deepcopy__(self, _memo: object) -> "Step":
        """Itself: packs copy a model's options whole, but there is only one call."""
        return self

    @property
    def frames(self) -> tuple[int, ...]:
        """Number of each latent of a block among all that are sampled; empty where nobody knows."""
        rows = 0 if self._batch is None else self._batch.latents
        if self._latents not in (None, rows):  # a pack split the batch
            return ()
        return tuple(range(rows) if self._window is None or len(self._window) != rows else self._window)

    @property
    def network(self) -> nn.Module:
        """The model that adapters act on."""
        assert self._applied is not None
        return self._applied.network

    @property
    def level(self) -> Tensor | None:
        """The noise level, 0-dim, on the device; None where nobody said it."""
        return None if self._sigmas is None else self._sigmas.flatten()[0]

    @property
    def timestep(self) -> Tensor:
        """(1,): when in the sampling this call is, as the model counts it; on the device.

        Raises:
            MismatchError: the model is called past ComfyUI, which says it.
        """
        if self._sigmas is None or self.run.model_sampling is None:
            raise MismatchError(
                "a call of the model that does not say its noise level, and an adapter that reads it at every step",
                expected="a model that ComfyUI's samplers call",
                action="remove the node that calls the model in a way of its own, or the IP-Adapter",
            )
        timestep: Tensor = self.run.model_sampling.timestep(self._sigmas.flatten()[:1])
        return timestep

    def kept(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """As `Run.kept`."""
        return self.run.kept(key, make)

    def rows(self, count: int, called: int | None = None, numbers: Sequence[int] | None = None) -> Rows:
        """Whose the rows of an attention layer are. Errors as `attention_rows`.

        Args:
            called: rows the network was called with, where a pack between ComfyUI's model and it changed them.
            numbers: `cond_or_uncond` as it reaches the layer.
        """
        numbers = self._numbers if numbers is None else numbers
        key = (count, called, tuple(numbers))
        if key not in self._rows:
            groups = [self._groups.get(number) or by_number(number) for number in numbers]
            if self._batch is None:
                self._batch = batch_rows(count, groups, None)
            batch = self._batch
            if called and called != batch.count and called % (len(groups) * batch.latents) == 0:
                batch = batch_rows(called, groups, batch.latents)
            self._rows[key] = attention_rows(count, batch, groups)
        return self._rows[key]

    def add_images(
        self,
        out: Tensor,
        q: Tensor,
        address: Address,
        feature_map: Sequence[int],
        attn_precision: torch.dtype | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """The attention of a site with the image branch of every plan that patches it added.

        Args:
            out, q: (G·B, L, H·D); `out` is what the site gives without images.
            address: of the site; what is said of it and of its feature map does not count in a compiled model.
            feature_map: the site's real shape: rows, channels, height and width, or the last two alone.
            attn_precision: that of the site, as ComfyUI hands it on.
            options: what the site was called with, for packs that override the attention; None is what the model was.
        """
        if self.is_compiled:
            address, feature_map = self.next_site(q.shape[-1]), self._feature_map(q.shape[1])
        called = feature_map[0] if len(feature_map) == _WHOLE_SHAPE else None
        rows = self.rows(q.shape[0], called, None if options is None else options.get("cond_or_uncond"))
        for plan, resident, slot in self.acting(address, Place.ATTENTION, rows, q):
            attend = self.attention(plan.sites[slot].heads, options, attn_precision)
            kv = resident.kv(slot, rows, self)
            image = image_attention(q, *kv, attend)
            mask = resident.mask(feature_map, q.shape[1], rows, self.frames)
            gate = self.gate(plan, image)
            before = before_guard(self, plan, out)
            out = add_image_attention(out, image, mask, gate, guard=plan.guard)
            if self.run.recording is not None:
                parts = parts_of(self, plan, slot, kv[1], partial(_attend_to_part, q, *kv, attend))
                held = held_back(out, before, 0, out.shape[1])
                made = Addition(plan, slot, rows, image, parts, weight_of(mask, gate), held)
                note(self, made, feature_map[-2:], self.size)
        return out

    def acting(
        self, address: Address, place: Place, rows: Rows, like: Tensor
    ) -> Iterator[tuple[PatchPlan, Resident, int]]:
        """Every plan that acts at a site, with its tensors on the device of `like` and the site's slot in them.

        Raises:
            MismatchError: it has something of its own for each latent, and these rows are other ones.
        """
        for plan in self._applied.plans if self._applied else ():
            if plan.place is place and address in plan.slots:
                self._check_frames(plan, rows)
                yield plan, self.run.resident(plan, like.device, like.dtype), plan.slots[address]

    def acts(self, address: Address, place: Place) -> bool:
        """Whether any plan acts at a site."""
        plans = self._applied.plans if self._applied else ()
        return any(plan.place is place and address in plan.slots for plan in plans)

    def attention(
        self,
        heads: int,
        options: Mapping[str, Any] | None,
        precision: torch.dtype | None = None,
        *,
        low_precision: bool = False,
        **more: Any,
    ) -> AttentionFunction:
        """ComfyUI's attention, for image tokens; arguments as those of `add_images`, and further ones of ComfyUI's.

        Args:
            low_precision: whether a kernel of low precision may run: the few image tokens alone lose more by it than
                they gain.
        """
        return partial(
            comfy_attention.optimized_attention,  # as it is now: packs and tests put another in its place
            heads=heads,
            attn_precision=precision,
            transformer_options=self._options if options is None else options,
            skip_reshape=True,
            low_precision_attention=low_precision,
            **more,
        )

    def next_site(self, width: int, place: Place = Place.ATTENTION, group: str = "") -> Address:
        """The site whose turn it is: compiled code may have been made for another.

        Args:
            width: channels of what the site is called with.
            place: sites are counted for each.
            group: of the sites that are counted; all of them if empty.

        Raises:
            MismatchError: the model does not run its sites in their order.
        """
        order = self._order(group)
        number = self._calls[place, group]
        site = order[number % len(order)] if order else None  # a pack may run the network several times
        self._calls[place, group] += 1
        if site is None or site.dim != width:
            raise MismatchError(
                f"a compiled model whose attention layer {number + 1} is not the one expected there",
                expected="a model that runs all its attention layers in their order",
                action="remove TorchCompileModel, or the node that skips layers",
            )
        return site.address

    def _order(self, group: str) -> tuple[Site, ...]:
        """The sites of a group as the model runs them; of all groups if it is empty."""
        order = self._applied.running_order if self._applied else ()
        return tuple(site for site in order if group in ("", site.group))

    def check_turns(self) -> None:
        """Whether a compiled model ran whole rounds of its sites: else some took the image of others.

        Raises:
            MismatchError: it left some out.
        """
        for (place, group), calls in self._calls.items():
            order = self._order(group)
            if order and calls % len(order):
                raise MismatchError(
                    f"a compiled model that ran {calls} of its {len(order)} attention layers ({place.value})",
                    expected="a model that runs all its attention layers in their order",
                    action="remove TorchCompileModel, or the node that skips layers",
                )

    def _feature_map(self, cells: int) -> tuple[int, int]:
        """Height and width of a feature map with so many cells, each half of another but for the size of the latent."""
        height, width = self.size
        while height * width > cells and height * width > 1:
            height, width = -(-height // 2), -(-width // 2)
        return height, width

    def _check_frames(self, plan: PatchPlan, rows: Rows) -> None:
        has_mask = plan.mask is not None
        if rows.latents != len(self.frames) and (plan.kv.is_per_frame or (has_mask and len(plan.mask or ()) > 1)):
            raise MismatchError(
                f"{rows.latents} rows of unknown latents, of {len(self.frames) or 'other'} that are sampled",
                expected="all latents of a batch together, where each has its own reference, weight or mask",
                action="remove the node that splits the batch, or use one reference, weight and mask for all",
            )
        if has_mask and self.is_partial:
            self.run.warn_once(
                "Another pack shows the model tiles of the picture without saying where they lie: the mask of the "
                "IP-Adapter is laid on every tile. Remove the mask, or sample without tiles."
            )

    def gate(self, plan: PatchPlan, like: Tensor) -> Tensor | None:
        """What the plan's strength is multiplied with now, 0-dim, like `like`; None if always with 1. Found once per step."""
        if self._sigmas is None:
            return None
        acting, curve = self.run.sigmas(plan), self.run.curve(plan, self._sigmas.device)
        if acting is None and curve is None:
            return None
        key = (plan, like.device, like.dtype)
        if key not in self._gates:
            factor = 1.0 if curve is None else curve.factor(self._sigmas)
            factor = factor if acting is None else acting.gate(self._sigmas) * factor
            self._gates[key] = torch.as_tensor(factor).to(like.device, like.dtype)
        return self._gates[key]


def _attend_to_part(q: Tensor, k: Tensor, v: Tensor, attend: AttentionFunction, of_tokens: Tensor) -> Tensor:
    return image_attention(q, k, v * of_tokens[:, None], attend)


def step_of(options: Mapping[str, Any]) -> Step:
    """The step of a call of the model.

    For a call of the network itself, past ComfyUI's model, it is made up: sides by ComfyUI's numbers, the schedule as it
    was when the adapter was applied.
    """
    step, applied = options.get(STEP), applied_to(options)
    return step if isinstance(step, Step) else Step(Run(applied, applied.model_sampling if applied else None), options)


def window_of(options: Mapping[str, Any]) -> Sequence[int] | None:
    """Numbers of the frames in ComfyUI's context window, else in AnimateDiff's; None without a window."""
    window = options.get("context_window")
    if window is None:
        return (options.get("ad_params") or {}).get("sub_idxs")
    anchor = getattr(window, "causal_anchor_index", None)  # a frame before the window, sampled with it
    numbers: Sequence[int] = window.index_list
    return numbers if anchor is None or anchor < 0 else [anchor, *numbers]
