"""What ComfyUI calls while it samples a model with adapters: a `Run` for every sampling, a `Step` for every call of it.

The nodes leave only plans on a MODEL. What depends on how it is sampled is found out here.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...ipadapter_core.backbone.registry import original
from ...ipadapter_core.branch.recording import Record, Recording
from ...ipadapter_core.branch.rows import batch_rows
from .applied import KEY, applied_to
from .compiled import apart, check_compiler, is_compiled
from .conditionings import Conditionings, by_number, read_conditionings
from .run import STEP, Run, Step, window_of
from .tiles import place_of

# in transformer_options
RUN, CONDITIONINGS, RECORDS = f"{KEY}_run", f"{KEY}_conditionings", f"{KEY}_records"
_LEVELS = 3  # which input of a sampling its noise levels are


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


def _in_run(executor: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """OUTER_SAMPLE: one `Run` for this sampling; its guider's options are a copy that dies with it."""
    guider = executor.class_obj  # type: ignore[attr-defined]  # a WrapperExecutor
    check_compiler(guider.model_options)
    options = guider.model_options.setdefault("transformer_options", {})
    applied, records = applied_to(options), options.get(RECORDS, ())
    recording = Recording(applied.plans if applied else ()) if records else None
    run = Run(applied, guider.model_patcher.get_model_object("model_sampling"), guider, recording)
    options[RUN] = run
    for record in records:
        record.begin()
    try:
        drawn = executor(*inputs, **named)
    finally:
        options.pop(RUN, None)
    if recording is not None:
        levels = (named["sigmas"] if "sigmas" in named else inputs[_LEVELS]).tolist()
        for record in records:
            record.end(recording, levels)
    return drawn


def add_record(model: ModelPatcher) -> tuple[ModelPatcher, Record]:
    """A clone of a model, and what will be left of its samplings."""
    clone, record = model.clone(), Record()
    options = clone.model_options["transformer_options"]
    options[RECORDS] = (*options.get(RECORDS, ()), record)
    add_wrappers(clone)
    return clone, record


def _count_memory(
    executor: Callable[..., Any], model: ModelPatcher, noise_shape: Sequence[int], conds: Any, *more: Any, **named: Any
) -> Any:
    """PREPARE_SAMPLING: have ComfyUI keep room for keys and values.

    Its estimate follows the area of the noise, which is all that a wrapper can change: as for its own context windows.
    """
    options = named.get("model_options") or model.model_options
    handler = options.get("context_handler")
    latents = noise_shape[0]
    if handler is not None and getattr(handler, "dim", None) == 0:
        latents = min(latents, handler.context_length)
    element_size = model.model.get_dtype_inference().itemsize
    applied = applied_to(options.get("transformer_options", {}))
    plans = applied.plans if applied else ()
    extra = sum(plan.kv.num_bytes(latents, element_size) for plan in plans)
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
    conditionings = read_conditionings(conds, known, x)
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
    applied = applied_to(transformer_options)
    run = transformer_options.get(RUN) or Run(applied, model.model_sampling)
    step = _step(run, x, transformer_options)
    options: Mapping[str, Any] = {**transformer_options, STEP: step}
    if run.is_compiled is None:
        run.is_compiled = is_compiled(model, options)
    if applied is None or not run.is_compiled:
        options = options if applied is None else applied.keep_slots(options)
        return executor(x, t, c_concat, c_crossattn, control, options, **named)
    if applied.fill_slots is not None:
        options = applied.fill_slots(options, applied.sites)
    hooks = (
        nullcontext()
        if applied.hooked is None
        else applied.hooked(original(model.diffusion_model), applied, is_compiled=True)
    )
    with apart(step), hooks:
        out = executor(x, t, c_concat, c_crossattn, control, options, **named)
    step.check_turns()
    return out


def _step(run: Run, x: Tensor, options: Mapping[str, Any]) -> Step:
    numbers = options.get("cond_or_uncond") or (0,)
    conditionings: Conditionings | None = options.get(CONDITIONINGS)
    size = (x.shape[-2], x.shape[-1])
    if conditionings is None:
        rows = batch_rows(len(x), [by_number(number) for number in numbers], None)
        return Step(run, options, rows, size=size)
    groups = conditionings.groups(numbers, options.get("uuids", ()))
    tile, is_partial = place_of(x, groups, conditionings.size)
    if tile is not None:
        groups = [replace(group, place=tile) for group in groups]
    latents, window = conditionings.latents, window_of(options)
    if window is not None and len(x) % (len(groups) * len(window)) == 0:
        latents = len(window)  # cut by a pack between the sampler's conditionings and the model
    rows = batch_rows(len(x), groups, latents)
    by_their_number = {group.number: group for group in reversed(groups)}
    return Step(run, options, rows, by_their_number, latents, size, is_partial, conditionings)
