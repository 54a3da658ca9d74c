"""Whether this ComfyUI asks the patches that a kind of base model is steered by: older ones do not, for some kinds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, cast

from torch import nn

from ...ipadapter_core.backbone.registry import original
from ...ipadapter_core.errors import MismatchError


@dataclass(frozen=True)
class Hooks:
    """What a kind needs.

    Attributes:
        block: the part of a model that asks.
        names: of the lists of patches that its code has to ask for.
        since: the ComfyUI that does, in words.
    """

    block: Callable[[Any], nn.Module]
    names: tuple[str, ...]
    since: str


NEEDED: dict[str, Hooks] = {
    "FLUX": Hooks(lambda model: model.double_blocks[0], ("attn1_patch", "attn1_output_patch"), "0.18.2"),
    "Anima": Hooks(lambda model: cast(Any, original(model.blocks[0])).cross_attn, ("attn2_patch",), "0.30"),
    "Z-Image": Hooks(lambda model: model, ("noise_refiner",), "0.16.3"),
    "Qwen-Image": Hooks(
        lambda model: cast(Any, original(model.transformer_blocks[0])).attn, ("attn1_patch",), "0.18.2"
    ),
}


def check_hooks(kind: str, network: nn.Module) -> None:
    """Raises MismatchError if ComfyUI's class of this kind of base model does not ask the patches we need."""
    needed = NEEDED.get(kind)
    if needed is None:
        return
    known = set(_texts(type(original(needed.block(network)))))
    if missing := [name for name in needed.names if name not in known]:
        raise MismatchError(
            f"a ComfyUI whose {kind} models ask no {' and '.join(missing)}",
            expected=f"ComfyUI {needed.since} or newer, for adapters for {kind}",
            action="update ComfyUI",
        )


def _texts(kind: type) -> Iterator[object]:
    """Every constant in the code of a class."""
    for base in kind.__mro__:
        for value in vars(base).values():
            if isinstance(value, FunctionType):
                yield from _constants(value.__code__)


def _constants(code: CodeType) -> Iterator[object]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _constants(constant)
        else:
            yield constant
