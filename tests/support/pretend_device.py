"""A GPU that is not there: tensors say they lie on it, their values are computed on the host, and what a real device
would refuse is refused.

torch's `FakeTensorMode` has no values, so nothing that reads a number (a log line, a checkpoint, a drawn picture) runs
in it, nor a backward pass in a torch that was built for CUDA and finds no driver. Here a whole run does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import accelerate.state
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
CPU = torch.device("cpu")
PEAK_BYTES = 123 << 20
"""What the device says was the most it held."""
_COPIES = {aten.copy_.default, aten._foreach_copy_.default}
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_MIXING = {*_COPIES, *_INDEXED, aten._to_copy.default}  # CUDA fetches an index itself
_READS = {Tensor.tolist, Tensor.cpu, Tensor.item}
# of tensors that nobody gave them, beside those that somebody did
_MAKERS = {
    *(torch._C._nn.scaled_dot_product_attention, torch._C._nn.pad_sequence),
    *(functional.rms_norm, Tensor.type_as, Tensor.backward),
}


class OtherDeviceError(RuntimeError):
    """What torch says on a machine that has the device."""


class Clock:
    """Time of a device that works off backward passes while the host goes on, and that the host waits for to read."""

    def __init__(self, seconds_per_backward: float) -> None:
        self.now = 0.0
        self._seconds, self._done_at = seconds_per_backward, 0.0

    def __call__(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        """On the host."""
        self.now += seconds

    def give(self) -> None:
        self._done_at = max(self._done_at, self.now) + self._seconds

    def wait(self, *_: object) -> None:
        self.now = max(self.now, self._done_at)


class OnDevice(Tensor):
    """A tensor that says it is at a place; its value is on the host.

    For the C++ side it is on "meta", whose gradients torch computes in the thread that asks for them.
    """

    value: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, value: Tensor, place: torch.device) -> "OnDevice":
        like = {"strides": value.stride(), "storage_offset": value.storage_offset(), "dtype": value.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, value.size(), layout=value.layout, device="meta", **like)
        made.value, made.place = value, place
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        (place,) = {leaf.place for leaf in _leaves((args, kwargs or {})) if isinstance(leaf, OnDevice)}
        return _run(place, func, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        return self.place

    @property
    def is_cuda(self) -> bool:
        return self.place.type == "cuda"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.value.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnDevice":
        memo[id(self)] = made = OnDevice(self.value.clone(), self.place).requires_grad_(self.requires_grad)
        return made

    def __repr__(self, **_: object) -> str:
        return f"{self.value!r} on {self.place}"


class _Operations(TorchDispatchMode):
    """Sees every operation, so also those that make a tensor on the device."""

    def __init__(self, place: torch.device, calls: "_Calls") -> None:
        super().__init__()
        self.place, self.calls = place, calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(self.place, func, args, kwargs or {}, is_meta_ours=self.calls.depth > 0)


class _Calls(TorchFunctionMode):
    """Whether torch makes tensors beside one of ours: then those on "meta", where ours are for it, are ours too."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.depth, self.clock = 0, clock

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS and isinstance(args[0], OnDevice):
            self.clock.wait()
        if func is Tensor.backward:
            self.clock.give()
        if func is Tensor.tolist:  # torch refuses it to every class but its own
            return args[0].cpu().tolist()
        if func in (torch.tensor, torch.as_tensor) and kwargs and kwargs.get("device") is not None:  # asks the driver
            device = kwargs["device"]
            return func(*args, **{**kwargs, "device": CPU}).to(device)
        is_ours = func in _MAKERS and any(isinstance(leaf, OnDevice) for leaf in _leaves((args, kwargs or {})))
        is_ours = is_ours or (func is Tensor.to and len(args) > 1 and isinstance(args[1], OnDevice))  # where that is
        self.depth += is_ours
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.depth -= is_ours


def _run(
    place: torch.device, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, is_meta_ours: bool = True
) -> Any:
    leaves = _leaves((args, kwargs))
    devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    given = {id(leaf.value): leaf for leaf in leaves if isinstance(leaf, OnDevice)}
    asks_for_it = any(device.type == place.type or (is_meta_ours and device.type == "meta") for device in devices)
    if not given and not asks_for_it:
        return func(*args, **kwargs)
    if given and func not in _MIXING:
        _check_together(place, func, leaves)
    if asks_for_it and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise OtherDeviceError(f"Expected a '{place.type}' device type for generator but found 'cpu', in {func}")
    made = func(*_each(_host, args), **_each(_host, kwargs))
    if devices and not asks_for_it:
        return made  # to the host
    if func in _COPIES and not isinstance(args[0], OnDevice | list | tuple):
        return args[0]
    return _each(lambda leaf: _placed(leaf, place, given), made)


def _placed(leaf: Any, place: torch.device, given: Mapping[int, OnDevice]) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if place.type == "mps" and leaf.dtype is torch.float64:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
    return given[id(leaf)] if id(leaf) in given else OnDevice(leaf, place)


def _check_together(place: torch.device, func: Any, leaves: Sequence[Any]) -> None:
    for leaf in leaves:
        if isinstance(leaf, Tensor) and not isinstance(leaf, OnDevice) and leaf.dim() > 0:
            raise OtherDeviceError(
                f"Expected all tensors to be on the same device, but found {place} and {leaf.device}, in {func}"
            )


def _host(leaf: Any) -> Any:
    if isinstance(leaf, OnDevice):
        return leaf.value
    return CPU if isinstance(leaf, torch.device) else leaf


def _leaves(tree: Any) -> list[Any]:
    """torch's own walk over nested arguments takes longer than tiny layers do."""
    if type(tree) is dict:
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        return [tree]
    return [
        leaf for branch in tree for leaf in (_leaves(branch) if isinstance(branch, list | tuple | dict) else [branch])
    ]


def _each(change: Callable[[Any], Any], tree: Any) -> Any:
    if type(tree) is dict:
        return {name: _each(change, branch) for name, branch in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)([_each(change, branch) for branch in tree])
    return change(tree)


@contextmanager
def pretend_device(kind: str = "cuda", clock: Clock | None = None) -> Iterator[torch.device]:
    """Inside, this machine has one device of a kind ("cuda" or "mps") for torch and accelerate.

    Args:
        clock: told of what the device is given, and of what is waited for.
    """
    place, clock = torch.device(kind, 0), clock or Clock(0.0)
    with ExitStack() as stack:
        _forget_device()
        stack.callback(_forget_device)
        stack.enter_context(patch.object(accelerate.state.PartialState, "default_device", property(lambda _: place)))
        stack.enter_context(patch.object(getattr(torch, kind), "synchronize", clock.wait))
        for owner, name, value in _CUDA if kind == "cuda" else ():
            stack.enter_context(patch.object(owner, name, value))
        calls = stack.enter_context(_Calls(clock))
        stack.enter_context(_Operations(place, calls))
        yield place


def _forget_device() -> None:
    """accelerate keeps what it found for the life of a process."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def _nothing(*_: object, **__: object) -> None:
    return None


_CUDA: list[tuple[Any, str, Any]] = [  # what Python asks the driver
    *((torch.cuda, name, _nothing) for name in ("_lazy_init", "set_device", "empty_cache")),
    *((torch.cuda, name, _nothing) for name in ("reset_peak_memory_stats", "manual_seed_all", "set_rng_state_all")),
    (torch.cuda, "is_available", lambda: True),
    (torch.cuda, "device_count", lambda: 1),
    (torch.cuda, "current_device", lambda: 0),
    (torch.cuda, "get_rng_state_all", list),
    (torch.cuda, "max_memory_allocated", lambda *_: PEAK_BYTES),
    (torch.optim.Optimizer, "_accelerator_graph_capture_health_check", _nothing),
    (Tensor, "pin_memory", lambda tensor, *_: tensor),
]
