"""Anima with an image prompt by the page's formula, on a copy of ComfyUI's network: the oracle of `test_anima`."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention, silu

Tensors = Mapping[str, Tensor]
# number of a block, its queries (B, H, L, D), the timestep embedding (B, 1, C), the sides of the rows, to (B, L, C)
Image = Callable[[int, Tensor, Tensor, list[int]], Tensor]
COND = 0  # in `cond_or_uncond`


def network_with(network: nn.Module, image: Image, place: str) -> nn.Module:
    """A copy that adds `image` to the cross-attention of each block, to the block, or before its MLP."""
    made = copy.deepcopy(network)
    for number, block in enumerate(made.blocks):
        _change(block, number, image, place)
    return made


def _change(block: Any, number: int, image: Image, place: str) -> None:
    seen: dict[str, Any] = {}
    run, norm = block.forward, block.layer_norm_mlp.forward

    def attend(q: Tensor, k: Tensor, v: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        text = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        numbers = transformer_options["cond_or_uncond"]
        sides = [side for side in numbers for _ in range(len(q) // len(numbers))]
        seen["image"] = image(number, q, seen["embedding"], sides)
        return text + seen["image"] if place == "attention" else text

    def forward(x: Tensor, embedding: Tensor, *inputs: Any, **named: Any) -> Tensor:
        seen["embedding"] = embedding
        out = run(x, embedding, *inputs, **named)
        return out if place == "attention" else out + seen["image"].view_as(out)

    block.cross_attn.attn_op = attend
    block.forward = forward
    if place == "before_mlp":
        block.layer_norm_mlp.forward = lambda x: norm(x + seen["image"].view_as(x))


def _heads(x: Tensor, q: Tensor) -> Tensor:
    return x.view(len(x), -1, q.shape[1], q.shape[3]).transpose(1, 2)


def _attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, keys, values).transpose(1, 2).flatten(2)


def _layer(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def _normed(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def _read(weight: Tensor, bias: Tensor | None, out: tuple[Tensor, Tensor | None], heads: int) -> nn.MultiheadAttention:
    """torch's own attention with these weights."""
    module = nn.MultiheadAttention(weight.shape[1], heads, batch_first=True, dtype=weight.dtype)
    zero = torch.zeros(len(weight), dtype=weight.dtype)
    given = (weight, zero if bias is None else bias, out[0], zero[: weight.shape[1]] if out[1] is None else out[1])
    names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    module.load_state_dict(dict(zip(names, given, strict=True)))
    return module.requires_grad_(False)


def lucifer_tokens(tensors: Tensors, features: Tensor) -> Tensor:
    """Tokens (R, N, C) of features (R, S, C)."""
    x = _normed(tensors, "siglip_norm", features) if "siglip_norm.weight" in tensors else features
    if "siglip_compressor.queries" in tensors:
        q = tensors["siglip_compressor.queries"].expand(len(x), -1, -1)
        for name in ("siglip_compressor.layers.0", "siglip_compressor.layers.1"):
            weight = torch.cat([tensors[f"{name}.{part}_proj.weight"] for part in "qkv"])
            asking, read = _normed(tensors, f"{name}.norm_q", q), _normed(tensors, f"{name}.norm_kv", x)
            q = q + _read(weight, None, (tensors[f"{name}.out_proj.weight"], None), 8)(asking, read, read)[0]
            within = _read(tensors[f"{name}.self_qkv.weight"], None, (tensors[f"{name}.self_out.weight"], None), 8)
            asking = _normed(tensors, f"{name}.norm_self", q)
            q = q + within(asking, asking, asking)[0]
            hidden = gelu(_layer(tensors, f"{name}.ffn.0", _normed(tensors, f"{name}.norm_ffn", q)))
            q = q + _layer(tensors, f"{name}.ffn.2", hidden)
        x = _normed(tensors, "siglip_compressor.final_norm", q)
    if "ip_self_attn.qkv.weight" in tensors:
        within = _read(tensors["ip_self_attn.qkv.weight"], None, (tensors["ip_self_attn.out_proj.weight"], None), 8)
        asking = _normed(tensors, "ip_self_attn.norm1", x)
        x = x + within(asking, asking, asking)[0]
        hidden = gelu(_layer(tensors, "ip_self_attn.ffn.0", _normed(tensors, "ip_self_attn.norm2", x)))
        x = x + _layer(tensors, "ip_self_attn.ffn.2", hidden)
    return x


def lucifer_image(tensors: Tensors, features: Tensor, strength: float, *, is_normed: bool) -> Image:
    """gate(t) * SDPA(q, [LN] ip_k(s t), ip_v(s t)); no image is `null_tokens`, or nothing at all."""
    tokens = lucifer_tokens(tensors, features).flatten(0, 1)[None]
    sides = {COND: strength * tokens, 1 - COND: tensors.get("null_tokens")}

    def projected(number: int, part: str, x: Tensor) -> Tensor:
        if f"shared_ip_{part}_proj.expand.weight" not in tensors:
            return _layer(tensors, f"blocks.{number}.ip_{part}_proj", x)
        name = f"shared_ip_{part}_proj"
        return _layer(tensors, f"{name}.project", gelu(_layer(tensors, f"{name}.expand", x)))

    def image(number: int, q: Tensor, embedding: Tensor, rows: list[int]) -> Tensor:
        out = []
        for row, side in enumerate(rows):
            given, asking = sides[side], q[row : row + 1]
            if given is None:
                out.append(torch.zeros(1, q.shape[2], q.shape[1] * q.shape[3], dtype=q.dtype))
                continue
            keys = _heads(projected(number, "k", given), q)
            keys = layer_norm(keys, keys.shape[-1:], eps=1e-6) if is_normed else keys
            out.append(_attention(asking, keys, _heads(projected(number, "v", given), q)))
        gate = _layer(tensors, f"blocks.{number}.adaln_ip.1", silu(embedding))
        times = q.shape[2] // gate.shape[1] if gate.shape[1] > 1 else 1
        return gate.repeat_interleave(times, dim=1) * torch.cat(out)

    return image


def pe_tokens(tensors: Tensors, features: Tensor, heads: int = 8) -> Tensor:
    """Tokens (R, N, C) of features (R, S, E)."""
    x = _layer(tensors, "resampler.kv_proj", features - tensors.get("ip_centroid", torch.zeros(())))
    q = tensors["resampler.queries"].expand(len(x), -1, -1)
    for name in ("resampler.blocks.0", "resampler.blocks.1"):

        def within(part: str, asking: Tensor, read: Tensor, name: str = name) -> Tensor:
            weight, bias, *out = (
                tensors[f"{name}.{part}.{which}"]
                for which in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
            )
            return _read(weight, bias, (out[0], out[1]), heads)(asking, read, read)[0]

        q = q + within("xattn", _normed(tensors, f"{name}.q_norm_x", q), _normed(tensors, f"{name}.kv_norm_x", x))
        asking = _normed(tensors, f"{name}.norm_s", q)
        q = q + within("sattn", asking, asking)
        q = q + _layer(
            tensors, f"{name}.ffn.2", gelu(_layer(tensors, f"{name}.ffn.0", _normed(tensors, f"{name}.norm_f", q)))
        )
    return _layer(tensors, "resampler.out", _normed(tensors, "resampler.out_norm", q))


def pe_image(tensors: Tensors, features: Sequence[Tensor], strength: float, network: Any) -> Image:
    """s * SDPA(q, k_norm(to_k_ip(t)), to_v_ip(t)) with the block's own norm; with gates g * s * SDPA(q, to_k_ip(t), ..).

    Args:
        features: of the cond and of the uncond side.
    """
    sides = [pe_tokens(tensors, side).flatten(0, 1)[None] for side in features]

    def image(number: int, q: Tensor, _embedding: Tensor, rows: list[int]) -> Tensor:
        out = []
        for row, side in enumerate(rows):
            given = sides[side]
            keys, values = (_heads(linear(given, tensors[f"to_{part}_ip.{number}.weight"]), q) for part in "kv")
            gate = tensors.get(f"ip_gate.{number}")
            if gate is None:
                keys, gate = network.blocks[number].cross_attn.k_norm(keys), torch.ones((), dtype=q.dtype)
            out.append(gate * strength * _attention(q[row : row + 1], keys, values))
        return torch.cat(out)

    return image
