"""The kinds of base models beside UNets at tiny sizes, an adapter for each, and how they are sampled."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from . import comfy_host, tiny_anima, tiny_flux, tiny_qwen_image, tiny_sd3, tiny_z_image
from .graphs import PLAIN
from .published import (
    Shapes,
    anima_lucifer,
    anima_pe,
    instantx_flux,
    instantx_sd35,
    random_tensors,
    studio,
    write_safetensors,
    xlabs_flux,
)

Setting = tuple[Any, Any, Any]  # MODEL, adapter, tokens


@dataclass(frozen=True, kw_only=True)
class Family:
    """A base model, an adapter file for it, and what a prompt for it is.

    Attributes:
        model: makes the MODEL.
        shapes: of the adapter's tensors, under the names its author publishes.
        spec: what the file's metadata must say beside, as tiny sizes are not the published ones.
        sites: addresses the adapter acts at, in the order they run.
        features: shape of what its image encoder gives for one reference.
        text_dim, pooled_dim: of a prompt.
        channels: of the latent.
        base: the published base model it is a tiny one of.
        metadata: what the author's file says beside.
        depth: dimensions of the latent between channels and height.
        model_in: makes the MODEL with weights stored in a first and computed in a second dtype.
        has_replacements: ComfyUI lets packs replace its blocks.
        inputs: what the network is called with beside.
        padded_to: a multiple of so many tokens a picture is made, behind its own.
    """

    model: Callable[[], Any]
    model_in: Callable[[torch.dtype, torch.dtype], Any]
    shapes: Callable[[], Shapes]
    sites: tuple[tuple[str, int, int], ...]
    features: tuple[int, ...]
    spec: dict[str, Any] = field(default_factory=dict)
    text_dim: int
    pooled_dim: int
    channels: int
    base: str
    metadata: dict[str, str] = field(default_factory=dict)
    depth: tuple[int, ...] = ()
    has_replacements: bool = True
    inputs: dict[str, Any] = field(default_factory=dict)
    padded_to: int = 1


_DOUBLES = tuple(("double", number, 0) for number in range(tiny_flux.DOUBLES))
_SINGLES = tuple(("single", number, 0) for number in range(tiny_flux.SINGLES))
_FLUX: dict[str, Any] = {
    "text_dim": tiny_flux.TEXT_DIM,
    "pooled_dim": tiny_flux.POOLED_DIM,
    "channels": tiny_flux.LATENT_CHANNELS,
    "base": "FLUX.1",
}


@lru_cache
def flux_model() -> Any:
    """The tiny FLUX as a MODEL."""
    return tiny_flux.comfy_flux(tiny_flux.diffusers_flux())


def _flux_in(dtype: torch.dtype, compute: torch.dtype) -> Any:
    return tiny_flux.comfy_flux(tiny_flux.diffusers_flux(), dtype, compute)


_chroma_model = lru_cache(tiny_flux.comfy_chroma)


def _chroma_in(dtype: torch.dtype, compute: torch.dtype) -> Any:
    return tiny_flux.comfy_chroma(0, dtype, compute)


def _xlabs(tokens: int) -> dict[str, Any]:
    return {
        "shapes": lambda: xlabs_flux(tokens, blocks=tiny_flux.DOUBLES, width=tiny_flux.WIDTH, image=24),
        "sites": _DOUBLES,
        "features": (24,),
        **_FLUX,
    }


_INSTANTX: dict[str, Any] = {
    "shapes": lambda: instantx_flux(
        blocks=tiny_flux.DOUBLES + tiny_flux.SINGLES, width=tiny_flux.WIDTH, image=24, tokens=6
    ),
    "spec": {"head_dim": tiny_flux.HEAD_DIM},
    "sites": _DOUBLES + _SINGLES,
    "features": (24,),
    **_FLUX,
}
_SD3: dict[str, Any] = {
    "shapes": lambda: instantx_sd35(
        blocks=tiny_sd3.BLOCKS, width=tiny_sd3.WIDTH, image=24, tokens=5, dim=32, inner=64, time=16
    ),
    "sites": tuple(("joint", number, 0) for number in range(tiny_sd3.BLOCKS)),
    "features": (7, 24),
    "text_dim": tiny_sd3.TEXT_DIM,
    "pooled_dim": tiny_sd3.POOLED_DIM,
    "channels": tiny_sd3.LATENT_CHANNELS,
    "base": "SD3.5-Large",
}


@lru_cache
def sd3_model(**settings: Any) -> Any:
    """A tiny SD3 as a MODEL. Arguments as `diffusers_sd3`'s."""
    return tiny_sd3.comfy_sd3(tiny_sd3.diffusers_sd3(**settings))


def _sd3_in(dtype: torch.dtype, compute: torch.dtype, **settings: Any) -> Any:
    return tiny_sd3.comfy_sd3(tiny_sd3.diffusers_sd3(**settings), dtype, compute)


_sd3_medium_in, _sd3_plain_in = partial(_sd3_in, dual=(0, 1)), partial(_sd3_in, qk_norm=None)


def _anima(shapes: Callable[[], Shapes], features: tuple[int, ...], **metadata: str) -> Family:
    return Family(
        model=anima_model,
        model_in=lambda dtype, compute: tiny_anima.comfy_anima(0, dtype, compute),
        shapes=shapes,
        spec={"head_dim": tiny_anima.HEAD_DIM},
        sites=tuple(("block", number, 0) for number in range(tiny_anima.BLOCKS)),
        features=features,
        text_dim=tiny_anima.TEXT_DIM,
        pooled_dim=8,
        channels=tiny_anima.LATENT_CHANNELS,
        base="Anima",
        metadata=metadata,
        depth=(1,),
        has_replacements=False,
    )


@lru_cache
def anima_model() -> Any:
    """The tiny Anima as a MODEL."""
    return tiny_anima.comfy_anima()


def _lucifer(**more: Any) -> Callable[[], Shapes]:
    return lambda: anima_lucifer(
        blocks=tiny_anima.BLOCKS, width=tiny_anima.WIDTH, image=24, text=tiny_anima.TEXT_DIM, **more
    )


def _pe(**more: Any) -> Callable[[], Shapes]:
    return lambda: anima_pe(blocks=tiny_anima.BLOCKS, width=tiny_anima.WIDTH, image=12, token=16, tokens=5, **more)


@lru_cache
def z_image_model() -> Any:
    """The tiny Z-Image as a MODEL."""
    return tiny_z_image.comfy_z_image(tiny_z_image.diffusers_z_image())


@lru_cache
def qwen_image_model() -> Any:
    """The tiny Qwen-Image as a MODEL."""
    return tiny_qwen_image.comfy_qwen_image(tiny_qwen_image.diffusers_qwen_image())


def _z_image_in(dtype: torch.dtype, compute: torch.dtype) -> Any:
    return tiny_z_image.comfy_z_image(tiny_z_image.diffusers_z_image(), dtype, compute)


def _qwen_image_in(dtype: torch.dtype, compute: torch.dtype) -> Any:
    return tiny_qwen_image.comfy_qwen_image(tiny_qwen_image.diffusers_qwen_image(), dtype, compute)


def _studio(sizes: Any, base: str) -> dict[str, Any]:
    return {
        "shapes": lambda: studio(
            blocks=sizes.BLOCKS,
            width=sizes.WIDTH,
            head=sizes.HEAD_DIM,
            image=24,
            token=20,
            tokens=5,
            dim=32,
            inner=64,
        ),
        "spec": {"backbone": base},
        "sites": tuple(("block", number, 0) for number in range(sizes.BLOCKS)),
        "features": (7, 24),
        "text_dim": sizes.TEXT_DIM,
        "pooled_dim": 8,
        "channels": sizes.LATENT_CHANNELS,
        "base": base,
    }


FAMILIES: dict[str, Family] = {
    "xlabs_v1": Family(model=flux_model, model_in=_flux_in, **_xlabs(4)),
    "xlabs_v2": Family(model=flux_model, model_in=_flux_in, **_xlabs(16)),
    "instantx_flux": Family(model=flux_model, model_in=_flux_in, **_INSTANTX),
    "xlabs_chroma": Family(model=_chroma_model, model_in=_chroma_in, **_xlabs(4)),
    "instantx_chroma": Family(model=_chroma_model, model_in=_chroma_in, **_INSTANTX),
    "instantx_sd35": Family(model=sd3_model, model_in=_sd3_in, **_SD3),
    "instantx_sd35_medium": Family(model=lambda: sd3_model(dual=(0, 1)), model_in=_sd3_medium_in, **_SD3),
    "instantx_sd3": Family(model=lambda: sd3_model(qk_norm=None), model_in=_sd3_plain_in, **_SD3),
    "anima_lucifer": _anima(_lucifer(), (6, 24)),
    "anima_lucifer_rich": _anima(
        _lucifer(shared=True, queries=4, null_tokens=(1, 4, 24), self_attention=True), (6, 24), ip_norm_keys="True"
    ),
    "anima_lucifer_early": _anima(_lucifer(null_tokens=(1, 6, 24)), (6, 24), ip_inject_before_mlp="True"),
    "anima_pe": _anima(_pe(), (6, 12)),
    "anima_pe_gated": _anima(_pe(gated=True), (6, 12)),
    "z_image": Family(
        model=z_image_model,
        model_in=_z_image_in,
        has_replacements=False,
        inputs={"num_tokens": 7},
        padded_to=tiny_z_image.PADDED_TO,
        **_studio(tiny_z_image, "Z-Image"),
    ),
    "qwen_image": Family(
        model=qwen_image_model, model_in=_qwen_image_in, depth=(1,), **_studio(tiny_qwen_image, "Qwen-Image")
    ),
}


# What only differs in a part from another one: `scripts/test.sh --long` tries them too.
VARIANTS = frozenset(
    {
        "xlabs_v2",
        "instantx_chroma",
        "instantx_sd35_medium",
        "instantx_sd3",
        "anima_lucifer",
        "anima_lucifer_early",
        "anima_pe_gated",
    }
)
EACH = [pytest.param(name, marks=pytest.mark.long) if name in VARIANTS else name for name in FAMILIES]


@lru_cache
def model_of(name: str) -> Any:
    """The MODEL of a family."""
    return FAMILIES[name].model()


def tensors_of(name: str, seed: int = 0) -> dict[str, Tensor]:
    """The tensors of a family's adapter."""
    return random_tensors(FAMILIES[name].shapes(), seed, scale=0.05)


@lru_cache
def adapter_of(name: str, base_directory: Path, seed: int = 0) -> Any:
    """The family's adapter as Load IP-Adapter gives it."""
    file = f"{name}-{seed}.safetensors"
    metadata = FAMILIES[name].metadata | {"ipadapter.spec": json.dumps(FAMILIES[name].spec)}
    write_safetensors(base_directory / "models" / "ipadapter" / file, tensors_of(name, seed), metadata)
    return comfy_host.run("IPALoadAdapter", adapter_file=file, image_encoder="none")


def forget() -> None:
    """Let go of all models: those that outlive ComfyUI's modules end with a traceback each."""
    models = (flux_model, _chroma_model, sd3_model, anima_model, z_image_model, qwen_image_model)
    for kept in (*models, model_of, adapter_of):
        kept.cache_clear()


def features_of(name: str, references: int = 1, seed: int = 0) -> Tensor:
    """What an image encoder might give for references."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(references, *FAMILIES[name].features, generator=generator)


def tokens_of(name: str, adapter: Any, references: int = 1, seed: int = 0) -> Any:
    """The tokens that the adapter's own projection makes of them, with none as negative."""
    features = features_of(name, references, seed)
    with torch.inference_mode():
        return adapter.project(features, torch.zeros_like(features[:1]))


def setting_of(name: str, base_directory: Path) -> Setting:
    """A MODEL, an adapter for it, and tokens of one reference."""
    adapter = adapter_of(name, base_directory)
    return model_of(name), adapter, tokens_of(name, adapter)


def differs(one: Tensor, other: Tensor) -> bool:
    """Whether two latents are apart by more than rounding."""
    return not torch.allclose(one, other, rtol=1e-3, atol=1e-4)


def apply(model: Any, adapter: Any, tokens: Any, **settings: Any) -> Any:
    """IPAApply with neutral settings unless told otherwise."""
    return comfy_host.run("IPAApply", model=model, adapter=adapter, tokens=tokens, **(PLAIN | settings))


def prompts_of(name: str, count: int = 2, **more: Any) -> list[Any]:
    """Conditionings: a positive, a negative."""
    family = FAMILIES[name]
    generator = torch.Generator().manual_seed(11)
    conds = []
    for _ in range(count):
        text = torch.randn(1, 7, family.text_dim, generator=generator)
        pooled = torch.randn(1, family.pooled_dim, generator=generator)
        conds.append([[text, {"pooled_output": pooled, **more}]])
    return conds


def sample(
    name: str,
    model: Any,
    *,
    steps: int = 2,
    cfg: float = 3.0,
    size: tuple[int, int] = (8, 8),
    batch: int = 1,
    prompts: list[Any] | None = None,
    callback: Any = None,
) -> Tensor:
    """Sample through ComfyUI's own sampler; equal arguments give equal latents."""
    import comfy.sample

    shape = (batch, FAMILIES[name].channels, *FAMILIES[name].depth, *size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    positive, negative = prompts or prompts_of(name)
    with torch.inference_mode():
        return comfy.sample.sample(
            model,
            noise,
            steps,
            cfg,
            "euler",
            "simple",
            positive,
            negative,
            torch.zeros_like(noise),
            callback=callback,
            disable_pbar=True,
        )


def use_attention(monkeypatch: Any, function: Callable[..., Tensor]) -> None:
    """Have ComfyUI's model classes call this attention, which they hold by name."""
    import importlib

    for module in (
        "flux.math",
        "modules.diffusionmodules.mmdit",
        "cosmos.predict2",
        "lumina.model",
        "qwen_image.model",
    ):
        held = importlib.import_module(f"comfy.ldm.{module}")
        for name in ("optimized_attention", "optimized_attention_masked"):
            if hasattr(held, name):
                monkeypatch.setattr(held, name, function)


def needs_replacements(name: str) -> None:
    """Skip a test about replaced blocks where ComfyUI lets nobody replace them."""
    if not FAMILIES[name].has_replacements:
        pytest.skip("ComfyUI lets nobody replace its blocks")
