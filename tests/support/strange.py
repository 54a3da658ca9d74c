"""Values that strangers put on sockets and into prompts: from other packs, from scripts, from spite."""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

STRIP = 16_000  # pixels
LONG = 10**4000  # of longer ones neither JSON nor ComfyUI's own messages have the digits

Make = Callable[[random.Random, Tensor], Any]
TENSORS: dict[str, Make] = {  # of a good tensor
    "none": lambda rng, x: None,
    "list": lambda rng, x: list(x),
    "list of one": lambda rng, x: [x],
    "tuple": lambda rng, x: (x, x),
    "numpy": lambda rng, x: x.numpy(),
    "meta": lambda rng, x: x.to("meta"),
    "sparse": lambda rng, x: x.to_sparse(),
    "fp8": lambda rng, x: x.to(torch.float8_e4m3fn),
    "float16": lambda rng, x: x.half(),
    "float64": lambda rng, x: x.double(),
    "complex": lambda rng, x: x.to(torch.complex64),
    "bool": lambda rng, x: x > 0.5,
    "int": lambda rng, x: x.to(torch.int64),
    "bytes": lambda rng, x: (255 * x).clamp(0, 255).to(torch.uint8),
    "quantized": lambda rng, x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
    "rank": lambda rng, x: torch.rand([rng.choice((1, 2, 3)) for _ in range(rng.randrange(7))]),
    "empty batch": lambda rng, x: x[:0],
    "empty side": lambda rng, x: x[:, :0],
    "one value": lambda rng, x: torch.tensor(0.5),
    "nan": lambda rng, x: x.where(torch.rand_like(x) < 0.99, math.nan) if rng.random() < 0.5 else x * math.nan,
    "infinite": lambda rng, x: x / 0,
    "negative": lambda rng, x: -x,
    "large": lambda rng, x: x * 1e30,
    "wide strip": lambda rng, x: torch.rand(1, 1, STRIP, *x.shape[3:]),
    "tall strip": lambda rng, x: torch.rand(1, STRIP, 1, *x.shape[3:]),
    "thin strip": lambda rng, x: torch.rand(1, 2, 700, *x.shape[3:]),
    "one pixel": lambda rng, x: torch.rand(1, 1, 1, *x.shape[3:]),
    "channels": lambda rng, x: torch.rand(*x.shape[:-1], rng.choice((1, 2, 4, 5))),
    "many": lambda rng, x: x[:1].expand(70, *x.shape[1:]),
    "two": lambda rng, x: torch.cat((x, x.flip(-1))),
    "one picture": lambda rng, x: x[0],
    "one more dimension": lambda rng, x: x[None],
    "transposed": lambda rng, x: x.transpose(-1, -2),
    "gradient": lambda rng, x: x.clone().requires_grad_(),
}
ANYTHING: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "empty list": list,
    "list": lambda: [0.5, 1.0],
    "nested list": lambda: [[0.5], [1.0, 2.0]],
    "list of text": lambda: ["a", "b"],
    "tuple": lambda: (1, None),
    "whole": lambda: 3,
    "negative": lambda: -7,
    "decimal": lambda: 0.25,
    "nan": lambda: math.nan,
    "infinite": lambda: math.inf,
    "large": lambda: 1e300,
    "long": lambda: LONG,
    "huge": lambda: 10**9,
    "true": lambda: True,
    "text": lambda: "a text",
    "empty text": lambda: "",
    "nul": lambda: "a\0b",
    "long text": lambda: "x" * 100_000,
    "surrogate": lambda: "\ud800",
    "up": lambda: "../../secret.safetensors",
    "absolute": lambda: "/etc/passwd",
    "backslash": lambda: "..\\..\\secret.safetensors",
    "dots": lambda: "..",
    "long digits": lambda: "3: " + "9" * 5000,
    "digits": lambda: "9" * 5000 + ": 1",
    "complex": lambda: 1j,
    "bytes": lambda: b"abc",
    "dictionary": lambda: {"a": 1},
    "empty dictionary": dict,
    "numbered dictionary": lambda: {1: 2, None: 3},
    "set": lambda: {1, 2},
    "object": object,
    "class": lambda: Tensor,
    "function": lambda: len,
    "module": lambda: torch.nn.Linear(2, 2),
    "array": lambda: np.linspace(0, 1, 5),
    "objects": lambda: np.array([None, "a"], dtype=object),
    "number of numpy": lambda: np.float32(0.5),
    "tensor": lambda: torch.rand(3),
    "one number": lambda: torch.tensor([0.5]),
    "meta": lambda: torch.empty(2, 2, device="meta"),
    "image": lambda: torch.rand(1, 8, 8, 3),
    "latent": lambda: {"samples": torch.rand(1, 4, 8, 8)},
    "conditioning": lambda: [[torch.rand(1, 7, 8), {}]],
}
LITERALS = {  # of these, what a prompt in JSON can hold
    name
    for name in ANYTHING
    if isinstance(ANYTHING[name](), dict | str | int | float | type(None)) and name != "numbered dictionary"
}


def strange(rng: random.Random, good: Any) -> tuple[str, Any]:
    """A value in place of a good one, and its kind: something else altogether, or the same with one fault in it."""
    if isinstance(good, Tensor) and rng.random() < 0.9:
        kind = rng.choice(sorted(TENSORS))
        return kind, _made(TENSORS[kind], rng, good)
    if isinstance(good, Mapping) and good and rng.random() < 0.9:
        return _with_a_fault(rng, good)
    if isinstance(good, list) and good and rng.random() < 0.9:
        place = rng.randrange(len(good))
        kind, value = strange(rng, good[place])
        return f"[{kind}]", [*good[:place], value, *good[place + 1 :]]
    kind = rng.choice(sorted(ANYTHING))
    return kind, ANYTHING[kind]()


def plausible(rng: random.Random, item: Any) -> tuple[str, Any]:
    """A value that a widget takes, or a number beside its range, as a linked one may be."""
    if item is None:  # of a socket that grows
        return "nothing", None
    if options := getattr(item, "options", None):
        return "choice", rng.choice(list(options))
    low, high = getattr(item, "min", None), getattr(item, "max", None)
    if "frame" in item.id:  # thousands of pictures take what memory there is
        high = 40
    if low is not None and high is not None:
        number = rng.choice((low, high, rng.uniform(low, high), rng.uniform(2 * low - high, 2 * high - low)))
        return "number", int(number) if item.get_io_type() == "INT" else number
    if item.get_io_type() == "BOOLEAN":
        return "flag", rng.random() < 0.5
    return "words", rng.choice(
        ("", "1", "0.5, 1", "3: 0.5, 6: 1", "output.1: 0", "a/b", "1\n0", "mine", "nan", "0: -1")
    )


def _with_a_fault(rng: random.Random, good: Mapping[Any, Any]) -> tuple[str, Any]:
    name = rng.choice(sorted(good))
    rest = {key: value for key, value in good.items() if key != name}
    if rng.random() < 0.3:
        return f"without {name}", rest
    kind, value = strange(rng, good[name])
    return f"{name}: {kind}", rest | {name: value}


def _made(make: Make, rng: random.Random, good: Tensor) -> Any:
    try:
        return make(rng, good)
    except (RuntimeError, IndexError):  # such as a transposed vector
        return None
