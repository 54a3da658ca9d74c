"""How a plan is hung into Anima: ComfyUI's patches say which attention runs, an attention override adds to it, and hooks
on its blocks add to what a block gives. The hooks are there while the network runs, and no longer.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...ipadapter_core.backbone.row import Place
from ...ipadapter_core.backbone.sites import Sites
from ...ipadapter_core.branch.plan import PatchPlan
from ...ipadapter_core.errors import MismatchError
from .anima_blocks import add_at_attention, add_later, crossing_of, note_crossing
from .applied import KEY, OVERRIDE, Applied, applied_to
from .replacement import install_in_slots
from .run import STEP, step_of

_START, _BEFORE = "post_input", "attn2_patch"
_changing = threading.Lock()
_running = threading.local()  # `block`: options and timestep embedding of the block that runs, for the hook within
Override = Callable[..., Tensor]


@dataclass(eq=False)
class _Hooks:
    """Those on one network, which stay until the last of the forwards that need them has ended.

    Attributes:
        forwards: that run now. PyTorch calls a hook wrongly that is removed while another thread is about to call it.
        handles: by number of the block, and kind.
    """

    forwards: int = 0
    handles: dict[tuple[int, str], RemovableHandle] = field(default_factory=dict)

    def add(self, index: int, kind: str, register: Callable[..., RemovableHandle], hook: object, **how: bool) -> None:
        if (index, kind) not in self.handles:
            self.handles[index, kind] = register(hook, **how)

    def remove(self) -> None:
        for handle in self.handles.values():
            handle.remove()


_held: "weakref.WeakKeyDictionary[nn.Module, _Hooks]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class KeepStep:
    """In the list `post_input`: one step for all of a forward, also of one past ComfyUI's model."""

    def __call__(self, arguments: dict[str, Any]) -> dict[str, Any]:
        options = arguments["transformer_options"]
        options.setdefault(STEP, step_of(options))
        return arguments


@dataclass(frozen=True, eq=False)
class NoteCrossAttention:
    """In the list `attn2_patch`: the attention that runs next is a block's cross-attention."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, extra_options: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {"k": note_crossing(extra_options, k, extra_options["block_index"])}


@dataclass(frozen=True, eq=False)
class AddToCrossAttention:
    """As the attention override: adds what acts on the cross-attention of a block.

    Attributes:
        patch_size: cells of the latent on a side that make one token.
        base: an override of another pack found in its place; runs in the attention's stead.
    """

    patch_size: int
    base: Override | None = None

    def __call__(self, attention: Override, q: Tensor, *inputs: Any, **named: Any) -> Tensor:
        options: dict[str, Any] = named.get("transformer_options") or {}
        address = crossing_of(options)
        out = attention(q, *inputs, **named) if self.base is None else self.base(attention, q, *inputs, **named)
        return add_at_attention(options, out, q, self.patch_size, address)


def install(model: ModelPatcher, sites: Sites, plan: PatchPlan, networks: tuple[ModelPatcher, ...]) -> None:
    """Put a plan into the model, a clone made for it."""
    install_in_slots(fill_slots, model, sites, plan, networks)
    if not model.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY):
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _in_network)


def fill_slots(options: Mapping[str, Any], sites: Sites) -> dict[str, Any]:
    """`transformer_options` with our patches behind, and our override around, those of other packs."""
    lists = dict(options.get("patches", {}))
    ours: tuple[tuple[str, Any], ...] = ((_START, KeepStep()), (_BEFORE, NoteCrossAttention()))
    for name, patch in ours:
        lists[name] = [*(found for found in lists.get(name, ()) if not isinstance(found, type(patch))), patch]
    override = options.get(OVERRIDE)
    if not isinstance(override, AddToCrossAttention):
        override = AddToCrossAttention(sites.patch_size, override)
    return {**options, "patches": lists, OVERRIDE: override}


@contextmanager
def hooked(network: nn.Module, applied: Applied, *, is_compiled: bool) -> Iterator[None]:
    """Inside, what acts on whole blocks is added to them.

    The hooks hold nothing, and find what they need in what a block is called with: they may be there for a forward of
    another thread.

    Args:
        is_compiled: the network is about to run compiled, and code made for these plans is used for others.

    Raises:
        MismatchError: it is, and an adapter acts within a block.
    """
    places: dict[int, set[Place]] = {}
    for plan in applied.plans:
        for site in plan.sites:
            places.setdefault(site.index, set()).add(plan.place)
    if is_compiled and any(Place.BEFORE_MLP in found for found in places.values()):
        raise MismatchError(
            "a compiled model, and an adapter for Anima that acts before the MLP of a block",
            expected="a model that is not compiled, for this adapter",
            action="remove TorchCompileModel, or the node that compiles the model",
        )
    with _changing:
        held = _held.setdefault(network, _Hooks())
        held.forwards += 1
        for index, block in enumerate(cast(Any, network).blocks):
            found = places.get(index, set())
            if is_compiled or found - {Place.ATTENTION}:
                held.add(index, "after", block.register_forward_hook, _after_block, with_kwargs=True)
            if Place.BEFORE_MLP in found:
                held.add(index, "before", block.register_forward_pre_hook, _before_block, with_kwargs=True)
                held.add(index, "mlp", block.layer_norm_mlp.register_forward_pre_hook, _before_mlp)
    try:
        yield
    finally:
        with _changing:
            held.forwards -= 1
            if not held.forwards:
                held.remove()
                del _held[network]


def _in_network(executor: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """DIFFUSION_MODEL: hooks for one forward; those of a compiled network are there before it runs."""
    options = None if torch.compiler.is_compiling() else named.get("transformer_options")
    applied = None if options is None else applied_to(options)
    if options is None or applied is None:
        return executor(*inputs, **named)
    try:
        with hooked(executor.class_obj, applied, is_compiled=False):  # type: ignore[attr-defined]  # a WrapperExecutor
            return executor(*inputs, **named)
    finally:
        _running.block = None


def _before_block(_block: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any] | None = None) -> None:
    if named is None:  # removed meanwhile, so it is a forward without adapters
        return
    _running.block = (named.get("transformer_options") or {}, inputs[1], None)


def _before_mlp(_norm: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor] | None:
    """The MLP reads what is added as well; `_after_block` adds it to what the block gives."""
    running: tuple[dict[str, Any], Tensor, Tensor | None] | None = getattr(_running, "block", None)
    if running is None or running[2] is not None:
        return None
    options, embedding, _ = running
    image = _added(options, torch.zeros_like(inputs[0]), embedding, Place.BEFORE_MLP)
    _running.block = (options, embedding, image)
    return (inputs[0] + image,)


def _after_block(_block: nn.Module, inputs: tuple[Any, ...], *given: Any) -> Tensor:
    *names, out = given
    if not names:  # as in `_before_block`
        return cast(Tensor, out)
    (named,) = names
    if not torch.compiler.is_compiling() and (running := getattr(_running, "block", None)) is not None:
        _running.block = None
        if running[2] is not None:
            out = out + running[2]
    return _added(named.get("transformer_options") or {}, out, inputs[1], Place.BLOCK)


def _added(options: dict[str, Any], out: Tensor, embedding: Tensor, place: Place) -> Tensor:
    """(B, T, H, W, C) with what waits for a place."""
    return add_later(options, out.flatten(1, 3), embedding, place).view_as(out)
