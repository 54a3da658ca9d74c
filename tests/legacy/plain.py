"""IPAdapter_plus' arithmetic in the plainest form, from a description of it: one function per layer of a UNet.

Nothing of the pack is used. Layers are addressed by ComfyUI's block names, and numbered by transformer in the order
they run.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

COND, UNCOND = 0, 1


@dataclass(frozen=True)
class Layer:
    """A cross-attention layer: its address, its transformer, and its key number in a file."""

    address: tuple[Any, ...]
    transformer: int
    number: int


def _layers(blocks: Sequence[tuple[str, int, int]]) -> list[Layer]:
    """`blocks`: (name, id, layers) in the order of a file's keys: down, up, middle last."""
    order = {"input": 0, "middle": 1, "output": 2}
    transformers = {block: n for n, block in enumerate(sorted(blocks, key=lambda block: (order[block[0]], block[1])))}
    found: list[Layer] = []
    for block in blocks:
        name, number, depth = block
        found += [
            Layer((name, number, index), transformers[block], 2 * (len(found) + index) + 1) for index in range(depth)
        ]
    return found


LAYERS = {
    "sd15": _layers(
        [("input", n, 1) for n in (1, 2, 4, 5, 7, 8)] + [("output", n, 1) for n in range(3, 12)] + [("middle", 0, 1)]
    ),
    "sdxl": _layers(
        [("input", 4, 1), ("input", 5, 1), ("input", 7, 2), ("input", 8, 2)]
        + [("output", n, 2) for n in (0, 1, 2)]
        + [("output", n, 1) for n in (3, 4, 5)]
        + [("middle", 0, 2)]
    ),
}
COUNT = {"sd15": 16, "sdxl": 11}
MIDDLE = {"sd15": 6, "sdxl": 4}
INPUT = {"sd15": range(6), "sdxl": range(4)}
COMPOSITION = {"sd15": (4, 5), "sdxl": (3,)}
_SD15_STYLE = (0, 1, 2, 3, 9, 10, 11, 12, 13, 14, 15)


def weights(
    name: str, layout: str, w: float, composition: float | None = None, boost: float | None = None
) -> dict[int, float]:
    """Weight by transformer. What is not listed gets nothing."""
    count, middle, half = COUNT[layout], MIDDLE[layout], COUNT[layout] / 2
    every = range(count)
    is_sdxl = layout == "sdxl"
    composed = 1.0 if composition is None else composition
    boosted = w if boost is None else boost
    by_depth: dict[str, Callable[[int], float]] = {
        "linear": lambda t: w,
        "ease in": lambda t: w * (0.05 + 0.95 * (1 - t / count)),
        "ease out": lambda t: w * (0.05 + 0.95 * (t / count)),
        "ease in-out": lambda t: w * (0.05 + 0.95 * (1 - abs(t - half) / half)),
        "reverse in-out": lambda t: w * (0.05 + 0.95 * (abs(t - half) / half)),
        "weak input": lambda t: 0.2 * w if t in INPUT[layout] else w,
        "weak middle": lambda t: 0.2 * w if t == middle else w,
        "weak output": lambda t: 0.2 * w if t > middle else w,
        "strong middle": lambda t: w if t == middle else 0.2 * w,
    }
    if name in by_depth:
        return {t: by_depth[name](t) for t in every}
    if name == "style transfer":
        return {6: w} if is_sdxl else dict.fromkeys(_SD15_STYLE, w)
    if name == "composition":
        return {3: w} if is_sdxl else {4: 0.25 * w, 5: w}
    if name == "strong style transfer":
        return {t: w for t in every if t not in COMPOSITION[layout]}
    if name == "style and composition":
        return {3: composed, 6: w} if is_sdxl else {**dict.fromkeys(_SD15_STYLE, w), 4: 0.25 * composed, 5: composed}
    if name == "strong style and composition":
        return {t: composed if t in COMPOSITION[layout] else w for t in every}
    if name == "style transfer precise":
        return {3: boosted, 6: w} if is_sdxl else {**dict.fromkeys(_SD15_STYLE, w), 4: 0.25 * boosted, 5: boosted}
    assert name == "composition precise"
    if is_sdxl:
        return {t: w if t == 3 else boosted if t == 6 else 0.1 * boosted for t in every}
    return {t: 0.25 * w if t == 4 else w if t == 5 else 0.1 * boosted if 6 <= t <= 8 else boosted for t in every}


def swapped(name: str, layout: str) -> set[int]:
    """Transformers where the reference is on the uncond side, and nothing on the cond side."""
    every, composition = set(range(COUNT[layout])), set(COMPOSITION[layout])
    return {"style transfer precise": composition, "composition precise": every - composition}.get(name, set())


@dataclass(frozen=True)
class Plain:
    """One adapter as applied.

    Attributes:
        tensors: of its file.
        cond, uncond: image tokens, (N, T, C); all act together, or row i on frame i if `per_frame`.
        weights: by transformer; a list is one per frame.
        cond_alt: tokens that replace `cond`, by transformer.
        masks: (M, H, W).
    """

    tensors: Mapping[str, Tensor]
    cond: Tensor
    uncond: Tensor
    weights: Mapping[int, float | Sequence[float]]
    middle: int
    scaling: str = "V only"
    swapped: set[int] = field(default_factory=set)
    cond_alt: Mapping[int, Tensor] = field(default_factory=dict)
    per_frame: bool = False
    masks: Tensor | None = None
    sigmas: tuple[float, float] | None = None  # start, end


def install(model: Any, layout: str, adapters: Sequence[Plain]) -> Any:
    """A clone of a MODEL whose attention is computed by `attend`, layer by layer."""
    clone = model.clone()
    for layer in LAYERS[layout]:

        def patch(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], layer: Layer = layer) -> Tensor:
            return attend(q, k, v, options, layer, adapters)

        name, number, index = layer.address
        clone.set_model_attn2_replace(patch, name, number, index)
    return clone


def attend(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any], layer: Layer, adapters: Sequence[Plain]) -> Tensor:
    """A cross-attention layer with adapters, one latent at a time."""
    heads, sides = options["n_heads"], options["cond_or_uncond"]
    out = softmax_attention(q, k, v, heads)
    latents = len(q) // len(sides)
    frames = options.get("frames") or list(range(latents))
    for adapter in adapters:
        weight = adapter.weights.get(layer.transformer)
        if weight is None or layer.transformer == adapter.middle:
            continue
        if adapter.sigmas is not None and not adapter.sigmas[1] <= float(options["sigmas"][0]) <= adapter.sigmas[0]:
            continue
        rows = []
        for row in range(len(q)):
            side, frame = sides[row // latents], frames[row % latents]
            tokens = _tokens(adapter, layer, side, frame)
            keys, values = (tokens @ adapter.tensors[f"ip_adapter.{layer.number}.to_{kv}_ip.weight"].T for kv in "kv")
            w = weight if isinstance(weight, int | float) else weight[min(frame, len(weight) - 1)]
            keys, values, after = scale(keys, values, w, adapter.scaling)
            keys, values = (x.reshape(1, -1, x.shape[-1]) for x in (keys, values))  # references behind one another
            branch = after * softmax_attention(q[row : row + 1], keys, values, heads)
            if adapter.masks is not None:
                branch = branch * _mask(adapter.masks, frame, options)
            rows.append(branch)
        out = out + torch.cat(rows)
    return out


def scale(keys: Tensor, values: Tensor, w: float, scaling: str) -> tuple[Tensor, Tensor, float]:
    """K, V of (N, T, D) and the factor of the attention's result."""
    if scaling == "V only":
        return keys, values, w
    if scaling == "K+V":
        return keys * w, values * w, 1.0
    w = w * keys.shape[-1] / 1280
    if scaling == "K+V w/ C penalty":
        return keys * w, values * w, 1.0
    mean = values.mean(dim=1, keepdim=True)
    return keys * w, (values - mean) + mean * w, 1.0


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """(B, L, H·D), (B, S, H·D) to (B, L, H·D)."""
    parts = []
    for queries, keys, values in zip(*(x.chunk(heads, dim=-1) for x in (q, k, v)), strict=True):
        scores = queries @ keys.transpose(1, 2) / math.sqrt(queries.shape[-1])
        parts.append(scores.softmax(dim=-1) @ values)
    return torch.cat(parts, dim=-1)


def linear_projection(tensors: Mapping[str, Tensor], embeds: Tensor) -> Tensor:
    """Image tokens (N, T, C) of the base adapters, from embeds (N, E)."""
    norm = tensors["image_proj.norm.weight"]
    x = embeds @ tensors["image_proj.proj.weight"].T + tensors["image_proj.proj.bias"]
    x = x.reshape(len(embeds), -1, len(norm))
    return functional.layer_norm(x, (len(norm),), norm, tensors["image_proj.norm.bias"])


def _tokens(adapter: Plain, layer: Layer, side: int, frame: int) -> Tensor:
    cond, uncond = adapter.cond_alt.get(layer.transformer, adapter.cond), adapter.uncond
    if adapter.per_frame:
        cond, uncond = (x[min(frame, len(x) - 1)][None] for x in (cond, uncond))
    if layer.transformer in adapter.swapped:
        cond, uncond = cond * 0, cond
    return cond if side == COND else uncond


def _mask(masks: Tensor, frame: int, options: dict[str, Any]) -> Tensor:
    """(1, L, 1) for the layer's own feature map."""
    size = tuple(options["activations_shape"][-2:])
    small = functional.interpolate(masks[:, None], size=size, mode="bilinear")
    return small[min(frame, len(small) - 1)].reshape(1, -1, 1)
