"""What a stranger may put where a value, a name or a run of bytes was."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .unreadable import UNREADABLE

DIGITS = "7" * 5_000


class Raw(str):
    """JSON text that no Python value stands for."""


VALUES: tuple[object, ...] = (
    *(None, True, False, -1, 0, 1, 3, 2**31, 2**63, 10**30, 1.5, 1e308, float("nan"), float("inf"), "", "text", "768"),
    *([], [1], [[1]], ["a"], [None], [-1, 2], [2**62, 4], [0, 2**62], [1.0, 2.0], {}, {"a": 1}, {"height": -3}, "٣"),
    Raw(DIGITS),
    Raw(f"[{DIGITS}, 2]"),
    Raw("[" * 10_000 + "]" * 10_000),
    Raw('{"a":' * 5_000 + "1" + "}" * 5_000),
    Raw("[" * 40 + "]" * 40),
    Raw('"\\ud800"'),
    Raw('"a\\u0000b"'),
)
NAMES = (
    *("", " ", ".", "image_proj.", "image_proj.proj.weight", "image_proj.norm.weight", "image_proj.latents", "embeds"),
    *("a\0b", "\u202eabc", "a\nb", "\x1b[2J", "x" * 100_000, "../../x", "vision_model.", "visual.proj", "proj"),
    *("ip_adapter.1.to_k_ip.weight", f"ip_adapter.{DIGITS}.to_k_ip.weight", "ip_adapter.٣.to_k_ip.weight"),
    *("ip_adapter.0.to_q_lora.down.weight", f"ip_adapter.{'9' * 300}.to_q_lora.up.weight", "lora_unet_x.alpha"),
    *(
        f"image_proj.layers.{DIGITS}.0.norm1.weight",
        f"vision_model.encoder.layers.{'8' * 400}.x",
        "image_proj.proj.3.weight",
    ),
    *("double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight", "ip_adapter.1.to_k_ip.bias"),
)


def changed_bytes(draw: random.Random, content: bytes) -> bytes:
    """Bits flipped, parts cut out, doubled or filled with noise, or an end that is missing."""
    if not content:
        return bytes(draw.randrange(256) for _ in range(draw.randrange(50)))
    new, start = bytearray(content), draw.randrange(len(content))
    length = draw.choice((1, 2, 8, 64, 1000))
    change = draw.randrange(6)
    if change == 0:
        for _ in range(draw.choice((1, 1, 3, 20))):
            new[draw.randrange(len(new))] ^= 1 << draw.randrange(8)
    elif change == 1:
        del new[start:]
    elif change == 2:
        del new[start : start + length]
    elif change == 3:
        new[start:start] = new[start : start + length]
    elif change == 4:
        new[start : start + length] = draw.randbytes(length)
    else:
        new[start : start + length] = bytes((draw.choice((0, 255)),)) * length
    return bytes(new)


def early(draw: random.Random, content: bytes, within: int = 400) -> bytes:
    """As `changed_bytes`, where structure usually lies: at the start."""
    return changed_bytes(draw, content[:within]) + content[within:]


def _sparse(path: Path) -> Path:
    path.write_bytes(b"")
    with path.open("r+b") as file:
        file.truncate(100 << 30)
    return path


PLACES: tuple[Callable[[Path], object], ...] = (*(make for make, _ in UNREADABLE.values()), _sparse)


def json_text(value: object) -> str:
    """As `json.dumps`, for what holds `Raw` text; a name that ends in `#` stands there without it, so perhaps twice."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(k).removesuffix('#'))}:{json_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(json_text, value)) + "]"
    return json.dumps(value)


def changed_json(draw: random.Random, value: dict[str, Any], times: int | None = None) -> dict[str, Any]:
    """A deep copy in which some value, on some level, is one that nobody expects."""
    new: dict[str, Any] = copy.deepcopy(value)
    for _ in range(times or draw.choice((1, 1, 1, 2, 4))):
        part, keys = new, list(new)
        while keys:
            key = draw.choice(keys)
            inner = part[key]
            if isinstance(inner, dict) and inner and draw.random() < 0.8:
                part, keys = inner, list(inner)
                continue
            change = draw.randrange(8)
            if change == 0:
                del part[key]
            elif change == 1:
                part[draw.choice(NAMES)] = part.pop(key)
            elif change == 2:
                part[f"{key}#"] = copy.deepcopy(inner)
            elif change == 3 and isinstance(inner, list) and inner:
                inner[draw.randrange(len(inner))] = draw.choice(VALUES)
            else:
                part[key] = draw.choice(VALUES)
            break
    return new
