"""ComfyUI in this process, once per session, and what the tests of the nodes share."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from . import comfy_host, families, tiny_unet
from .graphs import PLAIN
from .published import random_tensors, tiny_adapter, write_safetensors

HEAD_DIM = 64
DEPTH = 4


@pytest.fixture(scope="session")
def base_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """ComfyUI's base directory, with ComfyUI started on it."""
    base = tmp_path_factory.mktemp("comfyui")
    comfy_host.start(base)
    yield base
    families.forget()


@pytest.fixture(scope="session")
def unet(base_directory: Path) -> Callable[[str], Any]:
    """The tiny diffusers UNet of a layout."""
    return lru_cache(tiny_unet.diffusers_unet)


@pytest.fixture(scope="session")
def model(unet: Callable[[str], Any]) -> Callable[[str], Any]:
    """The same weights as a ComfyUI MODEL."""
    return lru_cache(lambda layout: tiny_unet.comfy_model(layout, unet(layout)))


@dataclass(frozen=True)
class AdapterFile:
    """A random adapter: its flat tensors, as written and for diffusers, and the loaded node output."""

    name: str
    tensors: dict[str, Tensor]
    loaded: Any


@pytest.fixture(scope="session")
def make_adapter(base_directory: Path, unet: Callable[[str], Any]) -> Callable[..., AdapterFile]:
    """Write a tiny adapter that fits a layout's UNet into models/ipadapter and load it through the node."""

    @lru_cache
    def make(kind: str, layout: str, *, num_tokens: int = 4, seed: int = 0) -> AdapterFile:
        shapes = tiny_adapter(
            kind,
            site_dims=tiny_unet.site_dims(unet(layout)),
            num_tokens=num_tokens,
            depth=DEPTH,
            head_dim=HEAD_DIM,
            heads=2,
        )
        name = f"{kind}-{layout}-{num_tokens}-{seed}.safetensors"
        tensors = random_tensors(shapes, seed)
        metadata = {"ipadapter.spec": json.dumps({"resampler": {"head_dim": HEAD_DIM}})}
        write_safetensors(base_directory / "models" / "ipadapter" / name, tensors, metadata)
        return AdapterFile(name, tensors, comfy_host.run("IPALoadAdapter", adapter_file=name, image_encoder="none"))

    return make


@pytest.fixture(scope="session")
def make_tokens() -> Callable[..., Any]:
    """Random image tokens for an adapter."""

    def make(adapter: AdapterFile, references: int = 1, seed: int = 0, num_tokens: int | None = None) -> Any:
        spec = adapter.loaded.spec
        generator = torch.Generator().manual_seed(seed)
        count = num_tokens or spec.num_tokens or 5
        sides = [torch.randn(references, count, spec.cross_attention_dim, generator=generator) for _ in range(2)]
        return comfy_host.pack("ipadapter_core.branch.tokens").ImageTokens(*sides, adapter.loaded.adapter_id)

    return make


@pytest.fixture
def setting(
    layout: str, model: Callable[[str], Any], make_adapter: Callable[..., AdapterFile], make_tokens: Callable[..., Any]
) -> tuple[Any, AdapterFile, Any]:
    """A MODEL, an adapter for it, and tokens of one reference; a test that asks for it has a parameter `layout`."""
    adapter = make_adapter("base", layout)
    return model(layout), adapter, make_tokens(adapter)


@pytest.fixture(scope="session")
def apply() -> Callable[..., Any]:
    """IPAApply with neutral settings unless told otherwise."""

    def run(model: Any, adapter: AdapterFile, tokens: Any, **settings: Any) -> Any:
        return comfy_host.run("IPAApply", model=model, adapter=adapter.loaded, tokens=tokens, **(PLAIN | settings))

    return run


@pytest.fixture(scope="session")
def sample() -> Callable[..., Tensor]:
    """Sample a MODEL through ComfyUI's own sampler; equal arguments give equal latents."""

    def run(model: Any, *, steps: int = 2, cfg: float = 4.0, size: tuple[int, int] = (8, 8), batch: int = 1) -> Tensor:
        import comfy.sample

        generator = torch.Generator().manual_seed(1)
        noise, conds = torch.randn(batch, 4, *size, generator=generator), []
        for _ in range(2):
            text = torch.randn(1, 7, tiny_unet.CONTEXT_DIM, generator=generator)
            conds.append([[text, {"pooled_output": torch.randn(1, tiny_unet.POOLED_DIM, generator=generator)}]])
        with torch.inference_mode():
            return comfy.sample.sample(
                model,
                noise,
                steps,
                cfg,
                "euler",
                "normal",
                conds[0],
                conds[1],
                torch.zeros_like(noise),
                disable_pbar=True,
            )

    return run


@pytest.fixture
def clip_vision(base_directory: Path) -> Iterator[Path]:
    """An empty models/clip_vision for one test."""
    folder = base_directory / "models" / "clip_vision"
    folder.mkdir(exist_ok=True)
    yield folder
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.fixture
def adapter_for(base_directory: Path) -> Callable[..., str]:
    """A tiny adapter file for features of a width: base reads pooled embeddings, plus reads hidden states."""

    def write(kind: str, image_dim: int, **spec: Any) -> str:
        name = f"{kind}-{image_dim}-{abs(hash(json.dumps(spec)))}.safetensors"
        shapes = tiny_adapter(kind, site_dims=(32,), image_dim=image_dim, head_dim=64, heads=1)
        metadata = {"ipadapter.spec": json.dumps(spec)} if spec else None
        write_safetensors(base_directory / "models" / "ipadapter" / name, random_tensors(shapes), metadata)
        return name

    return write
