"""One UNet forward with our patches in ComfyUI equals one in diffusers with the same weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from support import comfy_host, tiny_unet
from support.published import nested

SIZE = 8
TIMESTEP = 500
LAYOUTS = ("sd15", "sdxl")
RELATIVE = 1e-4
POSITIONS = 5  # features an encoder gives per picture


@dataclass(frozen=True)
class Prompt:
    """An adapter with image features of the cond and of the uncond side, each (references, …)."""

    adapter: Any
    cond: Tensor
    uncond: Tensor
    scale: float | list[float] = 1.0  # for all sites, or per site in checkpoint order
    mask: Tensor | None = None


def features(adapter: Any, references: int, seed: int) -> tuple[Tensor, Tensor]:
    spec = adapter.loaded.spec
    shape = (references, spec.image_dim) if spec.projection == "linear" else (references, POSITIONS, spec.image_dim)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def inputs(layout: str, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, text and the vector SDXL wants, for `batch` latents per group: uncond, then cond."""
    generator = torch.Generator().manual_seed(11)
    latents = torch.randn(2 * batch, 4, SIZE, SIZE, generator=generator)
    text = torch.randn(2 * batch, 7, tiny_unet.CONTEXT_DIM, generator=generator)
    return latents, text, torch.randn(2 * batch, tiny_unet.POOLED_DIM, generator=generator)


def in_diffusers(unet: UNet2DConditionModel, layout: str, prompts: Sequence[Prompt], batch: int = 1) -> Tensor:
    latents, text, pooled = inputs(layout, batch)
    unet._load_ip_adapter_weights([nested(prompt.adapter.tensors) for prompt in prompts], low_cpu_mem_usage=False)
    names = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for site, name in enumerate(names):
        scales = [p.scale[site] if isinstance(p.scale, list) else p.scale for p in prompts]
        unet.attn_processors[name].scale = scales
    conditions: dict[str, Any] = {
        "image_embeds": [
            torch.cat([side[None].expand(batch, *side.shape) for side in (prompt.uncond, prompt.cond)])
            for prompt in prompts
        ]
    }
    if layout == "sdxl":
        conditions |= {"text_embeds": pooled, "time_ids": torch.full((2 * batch, 6), 64.0)}
    masks = [
        p.mask.reshape(1, 1, *p.mask.shape[-2:]).expand(1, len(p.cond), -1, -1) for p in prompts if p.mask is not None
    ]
    with torch.no_grad():
        return unet(
            latents,
            TIMESTEP,
            text,
            added_cond_kwargs=conditions,
            cross_attention_kwargs={"ip_adapter_masks": masks} if masks else None,
        ).sample


def in_comfyui(
    model: Any, unet: UNet2DConditionModel, layout: str, prompts: Sequence[Prompt], batch: int = 1
) -> Tensor:
    application, layer_weights = (
        comfy_host.pack("nodes.patching.application"),
        comfy_host.pack("ipadapter_core.strength.layer_weights"),
    )
    image_tokens = comfy_host.pack("ipadapter_core.branch.tokens").ImageTokens
    for prompt in prompts:
        adapter = prompt.adapter.loaded
        tokens = image_tokens(
            adapter.network.project(prompt.cond), adapter.network.project(prompt.uncond), adapter.adapter_id
        )
        use = {"strength": prompt.scale, "mask": prompt.mask}
        if isinstance(prompt.scale, list):
            text = "\n".join(f"{site}: {scale}" for site, scale in enumerate(prompt.scale))
            factors = layer_weights.LayerWeights({}, layer_weights.parse_site_factors(text))
            use |= {"strength": 1.0, "layer_weights": factors}
        model = application.apply_adapter(model, adapter, tokens, application.ApplySettings(**use))
    latents, text, pooled = inputs(layout, batch)
    options = model.model_options["transformer_options"] | {"cond_or_uncond": [1, 0], "sigmas": torch.ones(1)}
    vector = None
    if layout == "sdxl":
        sizes = unet.add_time_proj(torch.full((2 * batch * 6,), 64.0)).reshape(2 * batch, -1)
        vector = torch.cat((pooled, sizes), dim=1)
    times = torch.full((2 * batch,), float(TIMESTEP))
    with torch.inference_mode():
        return model.model.diffusion_model(latents, times, context=text, y=vector, transformer_options=options)


def assert_equal(model: Any, layout: str, prompts: Sequence[Prompt], batch: int = 1) -> None:
    unet = tiny_unet.diffusers_unet(layout)
    expected = in_diffusers(unet, layout, prompts, batch)
    actual = in_comfyui(model, unet, layout, prompts, batch)
    error = (actual - expected).norm() / expected.norm()
    assert error < RELATIVE, f"relative error {error:.2e}"
    plain = in_comfyui(model, unet, layout, [], batch)
    assert (plain - expected).norm() / expected.norm() > 100 * RELATIVE, "the adapter does nothing here"


@pytest.fixture
def prompt(make_adapter: Callable) -> Callable[..., Prompt]:
    def make(
        kind: str, layout: str, *, references: int = 1, seed: int = 0, num_tokens: int = 4, **settings: Any
    ) -> Prompt:
        adapter = make_adapter(kind, layout, num_tokens=num_tokens, seed=seed)
        return Prompt(adapter, *features(adapter, references, seed), **settings)

    return make


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("kind", "num_tokens"), [("base", 4), ("plus", 4), ("plus", 16), ("plus", 1), ("full", 4)])
def test_every_projection(model: Callable, prompt: Callable, layout: str, kind: str, num_tokens: int) -> None:
    assert_equal(model(layout), layout, [prompt(kind, layout, num_tokens=num_tokens)])


@pytest.mark.parametrize("layout", tiny_unet.EITHER_LAYOUT)
@pytest.mark.parametrize("scale", [0.5, -0.7, 2.5])
def test_strengths(model: Callable, prompt: Callable, layout: str, scale: float) -> None:
    assert_equal(model(layout), layout, [prompt("base", layout, scale=scale)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_adapters_of_different_kinds(model: Callable, prompt: Callable, layout: str) -> None:
    prompts = [prompt("base", layout, scale=0.6), prompt("plus", layout, num_tokens=16, seed=4, scale=0.9)]
    assert_equal(model(layout), layout, prompts)


@pytest.mark.parametrize("layout", tiny_unet.EITHER_LAYOUT)
@pytest.mark.parametrize("kind", ["base", "plus"])
def test_several_references_and_latents(model: Callable, prompt: Callable, layout: str, kind: str) -> None:
    assert_equal(model(layout), layout, [prompt(kind, layout, references=3)], batch=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales_per_block(model: Callable, prompt: Callable, layout: str) -> None:
    sites = len(tiny_unet.layout_dims(layout))
    scales = [0.25 * (site % 5) for site in range(sites)]
    assert_equal(model(layout), layout, [prompt("base", layout, scale=scales)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_whose_cells_are_the_largest_feature_map(model: Callable, prompt: Callable, layout: str) -> None:
    """Resampling differs on purpose (area here, bicubic in diffusers), so the mask is constant over every cell that
    either samples from: one adapter on the whole picture, one nowhere."""
    whole, nowhere = torch.ones(SIZE, SIZE), torch.zeros(SIZE, SIZE)
    prompts = [prompt("base", layout, mask=whole), prompt("base", layout, seed=6, mask=nowhere)]
    assert_equal(model(layout), layout, prompts)
