"""How a plan is hung into Anima: ComfyUI's patches say which attention runs, an attention override adds to it, and hooks
on its blocks add to what a block gives. The hooks are there while the network runs, and no longer.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...ipadapter_core.backbone.row import Place
from ...ipadapter_core.backbone.sites import Address, Sites
from ...ipadapter_core.branch.plan import PatchPlan
from ...ipadapter_core.errors import MismatchError
from .applied import KEY, Applied, applied_to
from .compiled import add_to_sequence
from .replacement import Networks
from .sequence import Part

_FORWARD = f"{KEY}_forward"  # in the options of one forward of the network
_START, _BEFORE, _OVERRIDE = "post_input", "attn2_patch", "optimized_attention_override"
_GROUP = "block"
_running = threading.local()  # `block`: options and timestep embedding of the block that runs, for the hook in it
Override = Callable[..., Tensor]


class Forward:
    """One forward of the network: what its parts leave for those that come later.

    Attributes:
        part: the tokens that take the image, which are all.
        block: number of the block that runs.
        is_crossing: the next attention is the block's cross-attention.
        q: queries of the block, for what is added at its end.
        image: what was added before the block's MLP.
    """

    def __init__(self, part: Part) -> None:
        self.part = part
        self.block = 0
        self.is_crossing = False
        self.q: Tensor | None = None
        self.image: Tensor | None = None

    @property
    def address(self) -> Address:
        return (_GROUP, self.block, 0)


@dataclass(frozen=True, eq=False)
class StartForward:
    """In the list `post_input`: the options it is given are those of one forward.

    Attributes:
        patch_size: cells of the latent on a side that make one token.
    """

    patch_size: int

    def __call__(self, arguments: dict[str, Any]) -> dict[str, Any]:
        _, times, height, width, _ = arguments["img"].shape
        part = Part(0, times * height * width, 0, 0, self.patch_size, times)
        arguments["transformer_options"][_FORWARD] = Forward(part)
        return arguments


@dataclass(frozen=True, eq=False)
class NoteCrossAttention:
    """In the list `attn2_patch`: the attention that runs next is a cross-attention."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, extra_options: dict[str, Any], **_: Any) -> dict[str, Any]:
        forward = _forward(extra_options)
        forward.block, forward.is_crossing = extra_options["block_index"], True
        return {}


@dataclass(frozen=True, eq=False)
class AddToCrossAttention:
    """As the attention override: adds what acts on the cross-attention of a block.

    Attributes:
        base: an override of another pack found in its place; runs in the attention's stead.
    """

    base: Override | None = None

    def __call__(self, attention: Override, q: Tensor, *inputs: Any, **named: Any) -> Tensor:
        options: dict[str, Any] = named.get("transformer_options") or {}
        forward: Forward | None = options.get(_FORWARD)
        is_crossing = forward is not None and forward.is_crossing
        if forward is not None:
            forward.is_crossing = False  # an override of ours may be within the base, and the image asks as well
        out = attention(q, *inputs, **named) if self.base is None else self.base(attention, q, *inputs, **named)
        if forward is None or not is_crossing:
            return out
        if torch.compiler.is_compiling() or _adds_to_blocks(options):
            forward.q = q
        return add_to_sequence(options, out, q, forward.address, Place.ATTENTION, forward.part)


def install(model: ModelPatcher, sites: Sites, plan: PatchPlan, networks: tuple[ModelPatcher, ...]) -> None:
    """Put a plan into the model, a clone made for it."""
    options = model.model_options["transformer_options"]
    options.update(fill_slots(options, sites))
    if not model.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY):
        model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _in_network)
    if networks:
        model.set_model_patch(Networks(networks), KEY)


def fill_slots(options: Mapping[str, Any], sites: Sites) -> dict[str, Any]:
    """`transformer_options` with our patches behind, and our override around, those of other packs."""
    lists = dict(options.get("patches", {}))
    ours: tuple[tuple[str, Any], ...] = ((_START, StartForward(sites.patch_size)), (_BEFORE, NoteCrossAttention()))
    for name, patch in ours:
        lists[name] = [*(found for found in lists.get(name, ()) if not isinstance(found, type(patch))), patch]
    override = options.get(_OVERRIDE)
    if not isinstance(override, AddToCrossAttention):
        override = AddToCrossAttention(override)
    return {**options, "patches": lists, _OVERRIDE: override}


@contextmanager
def hooked(network: nn.Module, applied: Applied, *, is_compiled: bool) -> Iterator[None]:
    """Inside, what acts on whole blocks is added to them.

    The hooks know nothing, and find what they need in what a block is called with: they may be there twice, or for a
    forward of another thread.

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
    handles: list[RemovableHandle] = []
    try:
        for index, block in enumerate(cast(Any, network).blocks):
            found = places.get(index, set())
            if is_compiled or found - {Place.ATTENTION}:
                handles.append(block.register_forward_hook(_after_block, with_kwargs=True))
            if Place.BEFORE_MLP in found:
                handles.append(block.register_forward_pre_hook(_before_block, with_kwargs=True))
                handles.append(block.layer_norm_mlp.register_forward_pre_hook(_before_mlp))
        yield
    finally:
        for handle in handles:
            handle.remove()
        _running.block = None


def _in_network(executor: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """DIFFUSION_MODEL: hooks for one forward; those of a compiled network are there before it runs."""
    applied = None if torch.compiler.is_compiling() else applied_to(named.get("transformer_options") or {})
    if applied is None:
        return executor(*inputs, **named)
    with hooked(executor.class_obj, applied, is_compiled=False):  # type: ignore[attr-defined]  # a WrapperExecutor
        return executor(*inputs, **named)


def _before_block(_block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    _running.block = (named.get("transformer_options") or {}, inputs[1])


def _before_mlp(_norm: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor] | None:
    """The MLP reads what is added as well; `_after_block` adds it to what the block gives."""
    running: tuple[dict[str, Any], Tensor] | None = getattr(_running, "block", None)
    if running is None:
        return None
    options, embedding = running
    forward: Forward | None = options.get(_FORWARD)
    if forward is None or forward.q is None or forward.image is not None:
        return None
    forward.image = _added(options, torch.zeros_like(inputs[0]), forward, embedding, Place.BEFORE_MLP)
    return (inputs[0] + forward.image,)


def _after_block(_block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], out: Tensor) -> Tensor | None:
    options: dict[str, Any] = named.get("transformer_options") or {}
    forward: Forward | None = options.get(_FORWARD)
    if forward is None or forward.q is None:
        return None
    if forward.image is not None:
        out = out + forward.image
    out = _added(options, out, forward, inputs[1], Place.BLOCK)
    forward.q = forward.image = None
    return out


def _added(options: dict[str, Any], out: Tensor, forward: Forward, embedding: Tensor, place: Place) -> Tensor:
    """A block's (B, T, H, W, C) with what acts there."""
    assert forward.q is not None
    flat = out.flatten(1, 3)
    return add_to_sequence(options, flat, forward.q, forward.address, place, forward.part, embedding).view_as(out)


def _adds_to_blocks(options: Mapping[str, Any]) -> bool:
    applied = applied_to(options)
    return applied is not None and any(plan.place is not Place.ATTENTION for plan in applied.plans)


def _forward(options: Mapping[str, Any]) -> Forward:
    forward = options.get(_FORWARD)
    if not isinstance(forward, Forward):
        raise MismatchError(
            "a ComfyUI that calls no patches when Anima starts",
            expected="ComfyUI 0.30 or newer, for adapters for Anima",
            action="update ComfyUI",
        )
    return forward
