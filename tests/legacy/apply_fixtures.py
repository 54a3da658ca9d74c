"""What the tests of the apply nodes share: adapters as the loader gives them, and one forward of a whole tiny UNet."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from legacy import plain
from legacy.running import outputs
from support import tiny_unet
from support.encoders import EMBED_DIM, WIDTH
from support.published import random_tensors, tiny_adapter, write_safetensors

LAYOUTS = ("sd15", "sdxl")
SIGMA = 3.0  # of the forward
LATENT = 8  # side
TOLERANCE = 1e-4  # relative


@dataclass(frozen=True)
class Adapter:
    """An adapter file: its tensors, and what IPAdapterModelLoader makes of it."""

    tensors: dict[str, Tensor]
    payload: Any


@lru_cache
def adapter(folder: Path, layout: str, kind: str = "base", seed: int = 0) -> Adapter:
    """A random adapter for the tiny UNet and the tiny CLIP_VISION of `running`."""
    shapes = tiny_adapter(
        kind,
        site_dims=tiny_unet.layout_dims(layout),
        image_dim=EMBED_DIM if kind == "base" else WIDTH,
        head_dim=64,
        heads=1,
    )
    tensors = random_tensors(shapes, seed)
    name = f"legacy-{kind}-{layout}-{seed}.safetensors"
    write_safetensors(folder / "models" / "ipadapter" / name, tensors)
    return Adapter(tensors, outputs("IPAdapterModelLoader", ipadapter_file=name)[0])


def embeds(count: int, *, seed: int, positions: int = 0, width: int = EMBED_DIM) -> Tensor:
    """Random EMBEDS."""
    shape = (count, positions, width) if positions else (count, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def formula(folder: Path, layout: str, positive: Tensor, negative: Tensor, **how: Any) -> plain.Plain:
    """`adapter` and embeds for the plain formula."""
    tensors = adapter(folder, layout).tensors
    sides = (plain.linear_projection(tensors, side) for side in (positive, negative))
    return plain.Plain(tensors, *sides, middle=plain.MIDDLE[layout], **how)


def forward(model: Any, order: tuple[int, ...] = (1, 0), latents: int = 1, **options: Any) -> Tensor:
    """One forward with the model's patches, `latents` per conditioning group."""
    generator = torch.Generator().manual_seed(11)
    count = len(order) * latents
    x = torch.randn(count, 4, LATENT, LATENT, generator=generator)
    text = torch.randn(count, 7, tiny_unet.CONTEXT_DIM, generator=generator)
    pooled = torch.randn(count, 2816, generator=generator) if model.model.adm_channels else None
    all_options = dict(model.model_options["transformer_options"])
    all_options |= {"cond_or_uncond": list(order), "sigmas": torch.full((count,), SIGMA), "uuids": []} | options
    with torch.inference_mode():
        return model.model.diffusion_model(
            x, torch.full((count,), 500.0), context=text, y=pooled, transformer_options=all_options
        )


_BARE: WeakKeyDictionary[Any, dict[Any, Tensor]] = WeakKeyDictionary()


def bare(model: Any, **settings: Any) -> Tensor:
    """`forward` of a MODEL that nothing is hung into: what many tests compare with is computed once."""
    if not settings.keys() <= {"order", "latents"}:
        return forward(model, **settings)
    known, key = _BARE.setdefault(model, {}), frozenset(settings.items())
    if key not in known:
        known[key] = forward(model, **settings)
    return known[key]


def error(given: Tensor, wanted: Tensor) -> float:
    return float((given - wanted).norm() / wanted.norm())


def assert_draws(given: Any, model: Any, layout: str, adapters: list[plain.Plain], **settings: Any) -> None:
    """A patched MODEL computes what the plain formula does, and not what the model does without."""
    options = settings.pop("plain_options", {})
    wanted = forward(plain.install(model, layout, adapters), **{**settings, **options})
    assert error(forward(given, **settings), wanted) < TOLERANCE
    assert error(bare(model, **settings), wanted) > 30 * TOLERANCE, "the adapter does nothing here"
