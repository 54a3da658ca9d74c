"""`Run` and `Step`: what belongs to one sampling, and to one call of the model in it.

`IPAdapter` nodes leave only plans on a MODEL. What depends on how it is sampled is found out while sampling, by wrappers
that ComfyUI calls: a `Run` is made for every sampling and dies with it, a `Step` for every call of the model.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...ipadapter_core.backbone.backbones import original
from ...ipadapter_core.branch.plan import PatchPlan
from ...ipadapter_core.branch.resident import Resident
from ...ipadapter_core.branch.rows import Group, Rows, attention_rows, batch_rows
from ...ipadapter_core.branch.schedule import SigmaRange
from ...ipadapter_core.errors import MismatchError
from .conditionings import Conditionings, by_number, read_conditionings
from .tiles import place_of

logger = logging.getLogger(__name__)

KEY = "ipadapter_studio"
PLANS, SAMPLING, RUN, STEP, CONDITIONINGS = (
    f"{KEY}_{name}" for name in ("plans", "model_sampling", "run", "step", "conditionings")
)
_COMPILER_KEY = "torch.compile"  # under which ComfyUI's compile nodes register their wrapper


class Run:
    """One sampling, on one or several devices.

    Args:
        model_sampling: the noise schedule it is sampled with.
        guider: whose conditionings are sampled; None for a call of the model outside a sampler.
    """

    def __init__(self, model_sampling: Any, guider: Any = None) -> None:
        self.guider = guider
        self._model_sampling = model_sampling
        self._lock = threading.Lock()  # of several devices, each has a thread
        self._residents: dict[tuple[object, ...], Resident] = {}
        self._ranges: dict[PatchPlan, SigmaRange] = {}
        self._said: set[str] = set()

    def resident(self, plan: PatchPlan, device: torch.device, dtype: torch.dtype) -> Resident:
        """The plan's tensors on a device."""
        key = (plan, device, dtype)
        with self._lock:
            if key not in self._residents:
                self._residents[key] = Resident(plan, device, dtype)
            return self._residents[key]

    def sigmas(self, plan: PatchPlan) -> SigmaRange | None:
        """When a plan acts; None is always."""
        if plan.acting is None or self._model_sampling is None:
            return None
        with self._lock:
            if plan not in self._ranges:
                self._ranges[plan] = plan.acting.sigmas(self._model_sampling.percent_to_sigma)
            return self._ranges[plan]

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
            return sum(resident.num_bytes for resident in self._residents.values())


class Step:
    """One call of the model: which rows are whose, and what follows from its sigma. Belongs to one thread.

    Args:
        rows: of the batch the model was called with; None where nobody said how many there are.
        numbers: ComfyUI's `cond_or_uncond`, which packs lengthen in place along with the rows.
        groups: what each number stands for.
        latents: how many are sampled; None where nobody said it.
        window: numbers of these latents among all frames; None is 0, 1, 2 …
        sigmas: of this call; None outside a sampler.
        is_partial: the model is shown a part of the picture, and nobody said which.
    """

    def __init__(
        self,
        run: Run,
        rows: Rows | None,
        numbers: Sequence[int],
        groups: Mapping[int, Group],
        latents: int | None = None,
        sigmas: Tensor | None = None,
        *,
        window: Sequence[int] | None = None,
        is_partial: bool = False,
    ) -> None:
        self.run = run
        self._batch, self._numbers, self._groups = rows, numbers, groups
        self._latents, self._window, self._sigmas, self._is_partial = latents, window, sigmas, is_partial
        self._rows: dict[tuple[int, int], Rows] = {}
        self._gates: dict[tuple[object, ...], Tensor] = {}

    @property
    def frames(self) -> tuple[int, ...]:
        """Number of each latent of a block among all that are sampled; empty where nobody knows."""
        rows = 0 if self._batch is None else self._batch.latents
        if self._latents not in (None, rows):  # a pack split the batch
            return ()
        return tuple(range(rows) if self._window is None or len(self._window) != rows else self._window)

    def rows(self, count: int) -> Rows:
        """Whose the rows of an attention layer are. Errors as `attention_rows`."""
        key = (count, len(self._numbers))
        if key not in self._rows:
            groups = [self._groups.get(number) or by_number(number) for number in self._numbers]
            if self._batch is None:
                self._batch = batch_rows(count, groups, None)
            self._rows[key] = attention_rows(count, self._batch, groups)
        return self._rows[key]

    def image_branch(
        self,
        plan: PatchPlan,
        slot: int,
        q: Tensor,
        feature_map: Sequence[int],
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The image branch of one site, with the mask and the gate it is to be added with.

        Args:
            slot: place of the site in the plan.
            q: (G·B, L, H·D).
            feature_map: the site's real shape, ending in height and width.
            attend: q, k, v of one site to its image branch; see `image_attention`.
        """
        rows = self.rows(q.shape[0])
        if rows.latents != len(self.frames) and (
            plan.kv.is_per_frame or (plan.mask is not None and len(plan.mask) > 1)
        ):
            raise MismatchError(
                f"{rows.latents} rows of unknown latents, of {len(self.frames) or 'other'} that are sampled",
                expected="all latents of a batch together, where each has its own reference, weight or mask",
                action="remove the node that splits the batch, or use one reference, weight and mask for all",
            )
        resident = self.run.resident(plan, q.device, q.dtype)
        image = attend(q, *resident.kv(slot, rows, self))
        if plan.mask is not None and self._is_partial:
            self.run.warn_once(
                "Another pack shows the model tiles of the picture without saying where they lie: the mask of the "
                "IP-Adapter is laid on every tile. Remove the mask, or sample without tiles."
            )
        return image, resident.mask(feature_map, q.shape[1], rows, self.frames), self._gate(plan, image)

    def _gate(self, plan: PatchPlan, like: Tensor) -> Tensor | None:
        """Whether the plan acts now, as a 0-dim 0 or 1 like `like`; None if it always acts. Decided once per step."""
        acting = None if self._sigmas is None else self.run.sigmas(plan)
        if acting is None or self._sigmas is None:
            return None
        key = (plan, like.device, like.dtype)
        if key not in self._gates:
            self._gates[key] = acting.gate(self._sigmas).to(like.device, like.dtype)
        return self._gates[key]


def add_wrappers(model: ModelPatcher) -> None:
    """Have ComfyUI make runs and steps when this model is sampled; once per model."""
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, _in_run),
        (WrappersMP.PREPARE_SAMPLING, _count_memory),
        (WrappersMP.CALC_COND_BATCH, _note_conditionings),
        (WrappersMP.APPLY_MODEL, _in_step),
    ):
        if not model.get_wrappers(kind, KEY):
            model.add_wrapper_with_key(kind, KEY, wrapper)


def step_of(options: Mapping[str, Any]) -> Step:
    """The step of a call of the model; made up of what `transformer_options` say where no wrapper was called."""
    step = options.get(STEP)
    return step if isinstance(step, Step) else _lone_step(options)


def _in_run(executor: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """OUTER_SAMPLE: one `Run` for this sampling; its guider's options are a copy that dies with it."""
    guider = executor.class_obj  # type: ignore[attr-defined]  # a WrapperExecutor
    run = Run(guider.model_patcher.get_model_object("model_sampling"), guider)
    options = guider.model_options.setdefault("transformer_options", {})
    options[RUN] = run
    try:
        return executor(*inputs, **named)
    finally:
        del options[RUN]


def _count_memory(
    executor: Callable[..., Any], model: ModelPatcher, noise_shape: Sequence[int], conds: Any, *more: Any, **named: Any
) -> Any:
    """PREPARE_SAMPLING: have ComfyUI keep room for keys and values that differ from frame to frame.

    Its estimate follows the area of the noise, which is all that a wrapper can change: as for its own context windows.
    """
    options = named.get("model_options") or model.model_options
    handler = options.get("context_handler")
    latents = noise_shape[0]
    if handler is not None and getattr(handler, "dim", None) == 0:
        latents = min(latents, handler.context_length)
    element_size = model.model.get_dtype_inference().itemsize
    plans = options.get("transformer_options", {}).get(PLANS, ())
    extra = sum(plan.kv.num_bytes(latents, element_size) for plan in plans if plan.kv.is_per_frame)
    if extra:
        shape = list(noise_shape)
        per_column = model.model.memory_required([2 * latents, *shape[1:-1], 1])
        shape[-1] += -(-extra // max(1, int(per_column)))
        noise_shape = shape
    return executor(model, noise_shape, conds, *more, **named)


def _note_conditionings(
    executor: Callable[..., Any],
    model: Any,
    conds: Sequence[Any],
    x: Tensor,
    timestep: Any,
    model_options: dict[str, Any],
    *more: Any,
    **named: Any,
) -> Any:
    """CALC_COND_BATCH: what the lists that are about to be sampled are."""
    options = model_options.get("transformer_options", {})
    run = options.get(RUN)
    known = run.guider.conds if run is not None and run.guider is not None else {}
    conditionings = read_conditionings(conds, known, x, None if run is None else run.warn_once)
    options = {**options, CONDITIONINGS: conditionings}
    return executor(model, conds, x, timestep, {**model_options, "transformer_options": options}, *more, **named)


def _in_step(
    executor: Callable[..., Any],
    x: Tensor,
    t: Any,
    c_concat: Any = None,
    c_crossattn: Any = None,
    control: Any = None,
    transformer_options: Mapping[str, Any] = {},
    **named: Any,
) -> Any:
    """APPLY_MODEL: one `Step` for this call of the model."""
    model = executor.class_obj  # type: ignore[attr-defined]  # a WrapperExecutor
    run = transformer_options.get(RUN) or Run(model.model_sampling)
    options = {**transformer_options, RUN: run, STEP: _step(run, x, transformer_options)}
    if _is_compiled(model, options):
        named[_compiler_key(options.get(PLANS, ()))] = None
    return executor(x, t, c_concat, c_crossattn, control, options, **named)


def _step(run: Run, x: Tensor, options: Mapping[str, Any]) -> Step:
    numbers, sigmas = options.get("cond_or_uncond") or (0,), options.get("sigmas")
    conditionings: Conditionings | None = options.get(CONDITIONINGS)
    if conditionings is None:
        rows = batch_rows(len(x), [by_number(number) for number in numbers], None)
        return Step(run, rows, numbers, {}, None, sigmas, window=_window(options))
    groups = conditionings.groups(numbers, options.get("uuids", ()))
    tile, is_partial = place_of(x, groups, conditionings.size)
    if tile is not None:
        groups = [replace(group, place=tile) for group in groups]
    rows = batch_rows(len(x), groups, conditionings.latents)
    by_their_number = {group.number: group for group in reversed(groups)}
    window = _window(options)
    return Step(
        run, rows, numbers, by_their_number, conditionings.latents, sigmas, window=window, is_partial=is_partial
    )


def _lone_step(options: Mapping[str, Any]) -> Step:
    """For a call of the network itself, past ComfyUI's model: sides by ComfyUI's numbers, the schedule as at Apply."""
    numbers = options.get("cond_or_uncond") or (0,)
    return Step(Run(options.get(SAMPLING)), None, numbers, {}, None, options.get("sigmas"), window=_window(options))


def _window(options: Mapping[str, Any]) -> Sequence[int] | None:
    """Numbers of the frames in ComfyUI's context window, else in AnimateDiff's; None without a window."""
    window = options.get("context_window")
    if window is None:
        return (options.get("ad_params") or {}).get("sub_idxs")
    anchor = getattr(window, "causal_anchor_index", None)  # a frame before the window, sampled with it
    numbers: Sequence[int] = window.index_list
    return numbers if anchor is None or anchor < 0 else [anchor, *numbers]


def _is_compiled(model: Any, options: Mapping[str, Any]) -> bool:
    wrappers = options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})
    return _COMPILER_KEY in wrappers or original(model.diffusion_model) is not model.diffusion_model


def _compiler_key(plans: Sequence[PatchPlan]) -> str:
    """The name of an argument that the network does not read, another one for other patched sites.

    ComfyUI's compile nodes tell the compiler to look at nothing in `transformer_options`, so it would go on using code
    made for other patches. Names of arguments it does look at.
    """
    addresses = sorted({site.address for plan in plans for site in plan.sites})
    return f"{KEY}_{hash(tuple(addresses)) & 0xFFFFFFFF:08x}"
