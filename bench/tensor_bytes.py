"""Bytes of all tensors that are alive, followed operation by operation, and their peak: what a GPU's allocator would be
asked for, on any device and the same every time."""

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_MATRIX_OPERATIONS = {
    torch.ops.aten.convolution.default,
    torch.ops.aten.convolution_backward.default,
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
}


class TensorBytes(TorchDispatchMode):
    """Counts from what is alive when it is made. A storage shared by several tensors counts once.

    Args:
        elsewhere: modules whose weights are not on the device that is meant.

    Scratch memory inside one operation is not seen, so 16-bit matrix operations may be done in float32 inside, on a CPU
    without 16-bit arithmetic (where they would take minutes): their inputs and outputs are what they would be.
    """

    def __init__(self, elsewhere: Iterable[nn.Module] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, weakref.ref[Any]] = {}
        self.live = 0
        for module in elsewhere:
            for tensor in (*module.parameters(), *module.buffers()):
                self._add(tensor, counts=False)
        gc.collect()
        for thing in gc.get_objects():
            if issubclass(type(thing), Tensor):  # isinstance would ask lazy modules for their class
                self._add(thing)
        self.start = self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = _compute(func, args, kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        self.peak = max(self.peak, self.live)
        return result

    def _add(self, tensor: Tensor, *, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() * counts
        if key in self._known:
            return

        def forget(_: object) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, forget)
        self.live += size


class Quick16Bit(TorchDispatchMode):
    """The same for code that nothing is counted of."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    if func not in _MATRIX_OPERATIONS:
        return func(*args, **kwargs)
    dtype = args[0].dtype
    if dtype is torch.float32 or args[0].device.type != "cpu":
        return func(*args, **kwargs)
    args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
    return tree_map_only(Tensor, lambda tensor: tensor.to(dtype), func(*args, **kwargs))
