"""How tests/legacy/facts.py states a node: records, and short ways to make them."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Input:
    """An input as ComfyUI announces it.

    Attributes:
        type: socket type, or COMBO.
        options: of a combo; None where they are the files found.
    """

    name: str
    type: str
    default: Any = None
    min: float | None = None
    max: float | None = None
    step: float | None = None
    options: tuple[str, ...] | None = None
    multiline: bool = False
    optional: bool = False

    @property
    def is_widget(self) -> bool:
        return self.type in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@dataclass(frozen=True)
class Facts:
    """A node. Outputs are (type, name) pairs; required inputs come before optional ones, as widget values are saved."""

    display_name: str
    category: str
    inputs: tuple[Input, ...]
    outputs: tuple[tuple[str, str], ...]
    is_output: bool = False

    @property
    def widgets(self) -> tuple[Input, ...]:
        return tuple(item for item in self.inputs if item.is_widget)


def socket(name: str, io_type: str) -> Input:
    return Input(name, io_type)


def decimal(name: str, default: float, low: float, high: float, step: float = 0.05) -> Input:
    return Input(name, "FLOAT", default, low, high, step)


def whole(name: str, default: int, low: int, high: int) -> Input:
    return Input(name, "INT", default, low, high)


def combo(name: str, *options: str, default: str | None = None) -> Input:
    return Input(name, "COMBO", default or options[0], options=options)


def text(name: str, default: str = "", *, multiline: bool = False) -> Input:
    return Input(name, "STRING", default, multiline=multiline)


def optional(*inputs: Input) -> tuple[Input, ...]:
    return tuple(replace(item, optional=True) for item in inputs)
