"""The image branch in a model that `torch.compile` compiled.

ComfyUI's compile nodes have the compiler watch nothing in `transformer_options`, where patches, the order of a batch and
the number of a block stand: code made for one of them is used for all. So

- the image branch is one operation that the compiler does not look into; what it needs it finds in the step of its thread;
- every site has a patch then, whether a plan patches it or not, and the n-th call in a forward is the n-th site, as the
  block's number cannot be relied on;
- the compiler is made to keep code with and without our patches apart (`apart`).
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from functools import cache
from typing import Any, cast

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...ipadapter_core.backbone.registry import original
from ...ipadapter_core.backbone.row import Place
from ...ipadapter_core.backbone.sites import Address
from ...ipadapter_core.errors import MismatchError
from . import joint, sequence
from .run import Step, step_of

_COMPILER_KEY = "torch.compile"  # under which ComfyUI's compile nodes register their wrapper
_COMPILER_OPTIONS = "torch_compile_kwargs"  # in model_options
_running = threading.local()
_UNKNOWN = ("", 0, 0)
_RECORDING_MODES = ("reduce-overhead", "max-autotune")


# What records kernels to play them back must leave the operation out: it is another one at every step.
_UNRECORDED = getattr(torch.Tag, "cudagraph_unsafe", None)
_define: Any = torch.library.custom_op  # an older PyTorch's knows no tags


def _add_images(out: Tensor, q: Tensor, attn_precision: torch.dtype | None) -> Tensor:
    """`Step.add_images` of the step that is running.

    Raises:
        MismatchError: none is, as nothing showed that the model is compiled.
    """
    step = running_step()
    added = step.add_images(out, q, _UNKNOWN, (), attn_precision)
    return out.clone() if added is out else added  # an operation must not hand out its input


def _add_images_to_sequence(out: Tensor, q: Tensor, place: str, group: str, part: Sequence[int]) -> Tensor:
    """`sequence.add_images` of the step that is running. Errors as `_add_images`."""
    step = running_step()
    address = step.next_site(q.shape[1] * q.shape[3], Place(place), group)
    return sequence.add_images(step, out.clone(), q, address, Place(place), sequence.Part(*part), None)


def _add_images_to_joint(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, group: str, text: int, patch_size: int
) -> Tensor:
    """`joint.add_images` of the step that is running. Errors as `_add_images`."""
    step = running_step()
    address = step.next_site(q.shape[-1], Place.ATTENTION, group)
    return joint.add_images(step, out.clone(), joint.Own(q, k, v, text, patch_size), address, None)


def _shape_of_joint(out: Tensor, q: Tensor, k: Tensor, v: Tensor, group: str, text: int, patch_size: int) -> Tensor:
    return torch.empty_like(out)


def _shape_of_images(out: Tensor, q: Tensor, attn_precision: torch.dtype | None) -> Tensor:
    return torch.empty_like(out)


def _shape_of_sequence(out: Tensor, q: Tensor, place: str, group: str, part: Sequence[int]) -> Tensor:
    return torch.empty_like(out)


def running_step() -> Step:
    """The step of this thread, in a compiled model. Errors as `_add_images`."""
    step: Step | None = getattr(_running, "step", None)
    if step is None:
        raise MismatchError(
            "a model that was compiled in a way of its own, and an IP-Adapter on it",
            expected="a model compiled as TorchCompileModel does it",
            action="compile it with TorchCompileModel, or remove the node that compiles it",
        )
    return step


class Operation:
    """An operation that the compiler does not look into; `make_operations` makes it.

    Args:
        shape: as `run`, with fake tensors.
    """

    def __init__(self, name: str, run: Callable[..., Tensor], shape: Callable[..., Tensor]) -> None:
        self._name, self._run, self._shape = name, run, shape
        self._made: Any = None
        _OPERATIONS.append(self)

    def __call__(self, *given: Any) -> Tensor:
        return cast(Tensor, self._made(*given))

    def make(self) -> None:
        """Have PyTorch know it."""
        tags = {} if _UNRECORDED is None else {"tags": (_UNRECORDED,)}
        made = _define(f"ipadapter_studio::{self._name}", mutates_args=(), **tags)(self._run)
        made.register_fake(self._shape)
        self._made = made


_OPERATIONS: list[Operation] = []
_operation = Operation("add_images", _add_images, _shape_of_images)
_sequence_operation = Operation("add_images_to_sequence", _add_images_to_sequence, _shape_of_sequence)
_joint_operation = Operation("add_images_to_joint", _add_images_to_joint, _shape_of_joint)


@cache
def make_operations() -> None:
    """Make all operations, once.

    PyTorch takes a tenth of a second for it, which has no place in the start of ComfyUI. It must be over before code with
    our patches is traced; as models are compiled in more ways than `is_compiled` knows, that is when the first is patched.
    """
    for operation in _OPERATIONS:
        operation.make()


def add_images(
    options: Mapping[str, Any],
    out: Tensor,
    q: Tensor,
    address: Address,
    feature_map: Sequence[int],
    attn_precision: torch.dtype | None = None,
) -> Tensor:
    """`Step.add_images` of the call of the model whose `transformer_options` these are, compiled or not."""
    if torch.compiler.is_compiling():
        return _operation(out, q, attn_precision)
    return step_of(options).add_images(out, q, address, feature_map, attn_precision, options)


def add_to_sequence(
    options: Mapping[str, Any], out: Tensor, q: Tensor, address: Address, place: Place, part: sequence.Part
) -> Tensor:
    """`sequence.add_images` of the call of the model whose `transformer_options` these are, compiled or not."""
    if torch.compiler.is_compiling():
        return _sequence_operation(out, q, place.value, address[0], list(astuple(part)))
    return sequence.add_images(step_of(options), out, q, address, place, part, options)


def add_to_joint(options: Mapping[str, Any], out: Tensor, own: joint.Own, address: Address) -> Tensor:
    """`joint.add_images` of the call of the model whose `transformer_options` these are, compiled or not."""
    if torch.compiler.is_compiling():
        return _joint_operation(out, own.q, own.k, own.v, address[0], own.text, own.patch_size)
    return joint.add_images(step_of(options), out, own, address, options)


def is_compiled(model: Any, options: Mapping[str, Any]) -> bool:
    """Whether ComfyUI's model is about to run compiled.

    Args:
        model: a BaseModel.
        options: its `transformer_options`.
    """
    wrappers = options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})
    return _COMPILER_KEY in wrappers or any(
        original(module) is not module  # packs compile single blocks as well
        for module in model.diffusion_model.modules()
    )


def check_compiler(model_options: Mapping[str, Any]) -> None:
    """Refuse a compiler that records kernels once and plays them back: the image would stay that of the first step.

    Raises:
        MismatchError: it is such a one.
    """
    given = model_options.get(_COMPILER_OPTIONS) or {}
    records = given.get("backend") == "cudagraphs"
    if _UNRECORDED is None:  # an older PyTorch, in which nothing can be left out
        records |= given.get("mode") in _RECORDING_MODES or bool((given.get("options") or {}).get("triton.cudagraphs"))
    if records:
        raise MismatchError(
            "a model compiled with the backend cudagraphs, or a mode that uses it, and an IP-Adapter on it",
            expected="a compiler that asks the IP-Adapter at every step",
            action="set backend of TorchCompileModel to 'inductor', with the usual mode",
        )


@contextmanager
def apart(step: Step) -> Iterator[None]:
    """Inside, compiled code made without our patches is not used, and the operation belongs to this step.

    Autocast's cache flag is among the few things the compiler looks at in every piece of code, whatever it was told to
    ignore; nothing else reads the flag while autocast is off, as it is in ComfyUI.
    """
    outer, flag = getattr(_running, "step", None), torch.is_autocast_cache_enabled()
    _running.step, step.is_compiled = step, True
    torch.set_autocast_cache_enabled(not flag)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(flag)
        _running.step = outer
