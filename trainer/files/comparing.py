"""How far two networks are from each other: what they are asked, and how answers are compared."""

# B samples, S feature positions, E encoder dim

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ipadapter_core.file.spec import AdapterSpec, Projection
from ipadapter_core.network.adapter import IPAdapter

from ..models.face_network import face_tokens
from ..readers.reader import FEATURES, IDENTITY

_POSITIONS = 9  # S, where the adapter does not fix it


def random_features(spec: AdapterSpec) -> dict[str, Tensor]:
    """Named features of two references such as the adapter reads, always the same ones."""
    generator = torch.Generator().manual_seed(0)
    faces = {} if spec.face is None else {IDENTITY: torch.randn(2, spec.face.identity_dim, generator=generator)}
    if not spec.reads_pictures:
        return faces
    fixed = spec.resampler.max_positions if spec.resampler else None
    positions = () if spec.projection is Projection.LINEAR else (fixed or _POSITIONS,)
    return {**faces, FEATURES: torch.randn(2, *positions, spec.image_dim, generator=generator)}


def image_tokens(adapter: IPAdapter, features: Mapping[str, Tensor]) -> Tensor:
    """(2, N, C) of named features, computed in float32 on the CPU; of adapters that read times at `random_timesteps`."""
    own = adapter.image_proj
    adapter.image_proj = as_float(own).cpu()
    try:
        if adapter.spec.is_timed:
            return adapter.timed_tokens(features[FEATURES], random_timesteps())[0]
        return adapter.project(features[FEATURES]) if adapter.spec.face is None else face_tokens(adapter, features)
    finally:
        adapter.image_proj = own


def random_timesteps() -> Tensor:
    """(2,), 0..1000, for those that read them."""
    return torch.tensor([250.0, 900.0])


def as_float(module: Any) -> Any:
    """A float32 copy, one module at a time: all of a large adapter would take twice its file's size."""
    return copy.deepcopy(module).float()


def relative_difference(given: Tensor, expected: Tensor) -> float:
    """The largest, in parts of the largest value; 1 where shapes differ, or where only the expected is all zeros."""
    if given.shape != expected.shape:
        return 1.0
    difference, scale = float((given - expected).abs().max()), float(expected.abs().max())
    if difference == 0:
        return 0.0
    return difference / scale if scale else 1.0
