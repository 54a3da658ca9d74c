"""The adapters of this project's trainer by their formula alone, with nothing of ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from . import comfy_host, families


def plus_tokens(tensors: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """Tokens of each reference (R, S, E), (R, T, C), as diffusers' own resampler makes them."""
    part = {name.removeprefix("image_proj."): tensor for name, tensor in tensors.items()}
    _, queries, dim = part["latents"].shape
    depth = len({name.split(".")[1] for name in part if name.startswith("layers.")})
    inner = part["layers.0.0.to_q.weight"].shape[0]
    made = IPAdapterPlusImageProjection(
        part["proj_in.weight"].shape[1], part["proj_out.weight"].shape[0], dim, depth, 64, inner // 64, queries
    )
    names = {"latents": "latents", **{f"{end}.{kind}": f"{end}.{kind}" for end in _ENDS for kind in ("weight", "bias")}}
    for n in range(depth):
        names |= {f"layers.{n}.ln{i}.{kind}": f"layers.{n}.0.norm{i + 1}.{kind}" for i in (0, 1) for kind in _KINDS}
        names |= {f"layers.{n}.attn.to_q.weight": f"layers.{n}.0.to_q.weight"}
        names |= {f"layers.{n}.attn.to_out.0.weight": f"layers.{n}.0.to_out.weight"}
        names |= {f"layers.{n}.ff.0.{kind}": f"layers.{n}.1.0.{kind}" for kind in _KINDS}
        names |= {f"layers.{n}.ff.1.net.0.proj.weight": f"layers.{n}.1.1.weight"}
        names |= {f"layers.{n}.ff.1.net.2.weight": f"layers.{n}.1.3.weight"}
    weights = {ours: part[theirs] for ours, theirs in names.items()}
    for n in range(depth):
        both = part[f"layers.{n}.0.to_kv.weight"].chunk(2)
        weights |= {f"layers.{n}.attn.to_{kv}.weight": each for kv, each in zip("kv", both, strict=True)}
    made.load_state_dict(weights, strict=True)
    with torch.no_grad():
        return made(features)


_ENDS, _KINDS = ("proj_in", "proj_out", "norm_out"), ("weight", "bias")


@dataclass(frozen=True)
class Use:
    """An adapter's file, how strong it is in each block, and features of its references for cond and uncond rows."""

    name: str
    seed: int = 0
    references: int = 1
    scale: float | Sequence[float] = 1.0

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        return tuple(families.features_of(self.name, self.references, self.seed + side) for side in (1, 2))

    def scale_of(self, number: int) -> float:
        return self.scale if isinstance(self.scale, float) else self.scale[number]


class Branch:
    """What adapters add at a block."""

    def __init__(self, uses: Sequence[Use], number: int) -> None:
        self.parts = []
        for use in uses:
            tensors = families.tensors_of(use.name, use.seed)
            tokens = [plus_tokens(tensors, side).flatten(0, 1) for side in reversed(use.sides)]  # uncond, then cond
            weights = [tensors[f"ip_adapter.{number}.{name}.weight"] for name in ("to_k_ip", "to_v_ip", "norm_ip_k")]
            self.parts.append((use.scale_of(number), tokens, weights))

    def __call__(self, q: Tensor) -> Tensor:
        """Queries (B, L, H, D), of uncond rows and then cond ones, to (B, L, H·D)."""
        total = torch.zeros_like(q).flatten(2)
        for scale, tokens, (to_k, to_v, norm) in self.parts:
            rows = torch.stack(tokens).repeat_interleave(len(q) // 2, dim=0)
            k, v = (linear(rows, weight).unflatten(-1, (-1, q.shape[-1])) for weight in (to_k, to_v))
            k = k / (k.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm
            made = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
            total = total + scale * made.transpose(1, 2).flatten(2)
        return total


def applied(model: Any, uses: Sequence[Use], folder: Path) -> Any:
    """A MODEL with these adapters on it, as the nodes do it."""
    for use in uses:
        adapter = families.adapter_of(use.name, folder, use.seed)
        more: dict[str, Any] = {"strength": use.scale}
        if not isinstance(use.scale, float):
            factors = ", ".join(f"{number}: {factor}" for number, factor in enumerate(use.scale))
            groups = dict.fromkeys(("input", "middle", "output", "style", "composition"), 1.0)
            more = {"layer_weights": comfy_host.run("IPALayerWeights", site_factors=factors, **groups)}
        model = families.apply(model, adapter, adapter.project(*use.sides), **more)
    return model


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative."""
    return float((actual - expected).norm() / expected.norm())
