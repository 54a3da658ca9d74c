"""Dimensions of a perceiver resampler, by its tensors."""

import re
from collections.abc import Mapping

from ..numbers import is_whole
from .shapes import inconsistent, matrix
from .signatures import Shapes
from .spec import DEFAULT_HEAD_DIM, ResamplerSpec


def read_resampler(
    shapes: Shapes, stated: Mapping[str, object], prefix: str, queries: int | None
) -> tuple[ResamplerSpec, int]:
    """Dimensions of the perceiver resampler under a prefix, and the width of what it reads."""
    layers = {int(match[1]) for name in shapes if (match := re.match(rf"{prefix}\.layers\.(\d+)\.", name))}
    dim, image_dim = matrix(shapes, f"{prefix}.proj_in.weight")
    inner = matrix(shapes, f"{prefix}.layers.0.0.to_q.weight")[0]
    given = stated.get("resampler")
    head_dim = given.get("head_dim", DEFAULT_HEAD_DIM) if isinstance(given, dict) else DEFAULT_HEAD_DIM
    if not is_whole(head_dim) or head_dim < 1 or not inner or inner % head_dim:
        raise inconsistent(f"to_q has {inner} rows, which heads of size {head_dim!r} do not divide")
    positions = shapes.get(f"{prefix}.pos_emb.weight")
    pooled = shapes.get(f"{prefix}.to_latents_from_mean_pooled_seq.1.weight")
    if queries is None:
        raise inconsistent(f"{prefix}.latents has shape {list(shapes[f'{prefix}.latents'])}")
    resampler = ResamplerSpec(
        dim=dim,
        depth=len(layers),
        num_heads=inner // head_dim,
        head_dim=head_dim,
        ff_dim=matrix(shapes, f"{prefix}.layers.0.1.1.weight")[0],
        num_queries=queries,
        max_positions=positions[0] if positions else None,
        num_mean_pooled=pooled[0] // dim if pooled else 0,
    )
    return resampler, image_dim
