"""A whole UNet forward: our saved file in diffusers' own pipeline equals `ipadapter_core` in a plain UNet's attention.

Nothing of ComfyUI plays a part; `tests/comfy/test_parity.py` compares the nodes with diffusers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.image_processor import IPAdapterMaskProcessor
from torch import Tensor

from ipadapter_core.branch.masks import mask_to_tokens
from ipadapter_core.branch.tokens import ImageTokens
from ipadapter_core.network.adapter import build_adapter, load_adapter, save_adapter
from parity.oracle import CoreProcessor, batched, cross_attentions, make_plan, site_of
from support import tiny_unet
from support.published import random_tensors, tiny_adapter

HEIGHT, WIDTH = 16, 24  # of the latents
LATENTS, TEXT, TIMESTEP, IMAGE_DIM = 2, 7, 500, 24
RELATIVE = 1e-5  # the requirement is 1e-4
FEATURES = {"base": (IMAGE_DIM,), "plus": (9, IMAGE_DIM), "full": (9, IMAGE_DIM)}
LAYOUTS = ("sd15", "sdxl")

Scale = float | dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """An adapter file with its reference features, (R, …) on either side.

    Attributes:
        scale: as diffusers' `set_ip_adapter_scale` takes it.
        block_scales: the same for us where `scale` is a dictionary: by beginning of the layer's name, 0 elsewhere.
    """

    path: Path
    cond: Tensor
    uncond: Tensor
    scale: Scale = 1.0
    block_scales: dict[str, float] | None = None
    mask: Tensor | None = None

    def strength(self, name: str) -> float:
        if self.block_scales is None:
            assert isinstance(self.scale, float)
            return self.scale
        return next((scale for start, scale in self.block_scales.items() if name.startswith(start)), 0.0)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def make_prompt(
    folder: Path, layout: str, kind: Any, *, references: int = 1, seed: int = 0, num_tokens: int = 4, **settings: Any
) -> Prompt:
    """Write an adapter as `save_adapter` does."""
    # diffusers takes 4 tokens of base, and 4 layers and heads of size 64 of plus adapters for granted
    shapes = tiny_adapter(
        kind,
        site_dims=tiny_unet.layout_dims(layout),
        image_dim=IMAGE_DIM,
        num_tokens=num_tokens,
        depth=4,
        head_dim=64,
    )
    path = folder / f"{kind}_{seed}.safetensors"
    save_adapter(build_adapter(random_tensors(shapes, seed), {}), path)
    generator = torch.Generator().manual_seed(seed)
    cond, uncond = torch.randn(2, references, *FEATURES[kind], generator=generator)
    return Prompt(path, cond, uncond, **settings)


def forward(unet: Any, layout: str, image_embeds: list[Tensor] | None = None, masks: Any = None) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    latents = torch.randn(2 * LATENTS, 4, HEIGHT, WIDTH, generator=generator)
    text = torch.randn(2 * LATENTS, TEXT, tiny_unet.CONTEXT_DIM, generator=generator)
    conditions: dict[str, Any] = {} if image_embeds is None else {"image_embeds": image_embeds}
    if layout == "sdxl":
        pooled = torch.randn(2 * LATENTS, tiny_unet.POOLED_DIM, generator=generator)
        conditions |= {"text_embeds": pooled, "time_ids": torch.full((2 * LATENTS, 6), 64.0)}
    attention = {"ip_adapter_masks": masks} if masks else None
    with torch.no_grad():
        out: Tensor = unet(
            latents, TIMESTEP, text, added_cond_kwargs=conditions, cross_attention_kwargs=attention
        ).sample
    return out


def in_diffusers(layout: str, prompts: Sequence[Prompt]) -> Tensor:
    """Through the pipeline's `load_ip_adapter` and `set_ip_adapter_scale`."""
    unet, scheduler = tiny_unet.diffusers_unet(layout), DDIMScheduler(clip_sample=False, steps_offset=1)
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "feature_extractor", "image_encoder"))
    if layout == "sdxl":
        parts |= {"text_encoder_2": None, "tokenizer_2": None}
        pipeline: Any = StableDiffusionXLPipeline(**parts, unet=unet, scheduler=scheduler)
    else:
        parts |= {"safety_checker": None}
        pipeline = StableDiffusionPipeline(**parts, unet=unet, scheduler=scheduler, requires_safety_checker=False)
    pipeline.load_ip_adapter(
        [str(prompt.path.parent) for prompt in prompts],
        subfolder=[""] * len(prompts),
        weight_name=[prompt.path.name for prompt in prompts],
        image_encoder_folder=None,
        local_files_only=True,
    )
    pipeline.set_ip_adapter_scale([prompt.scale for prompt in prompts])
    masks = [prompt.mask[None] for prompt in prompts if prompt.mask is not None]
    return forward(unet, layout, [batched(p.uncond, p.cond, LATENTS) for p in prompts], masks)


@lru_cache
def plain_unet(layout: str) -> UNet2DConditionModel:
    return tiny_unet.diffusers_unet(layout)


@lru_cache
def drawn_without(layout: str) -> Tensor:
    """What is there to be changed by an adapter."""
    return forward(tiny_unet.diffusers_unet(layout), layout)


def in_core(layout: str, prompts: Sequence[Prompt]) -> Tensor:
    """A plain UNet of the same weights whose cross-attention is computed by `ipadapter_core`."""
    unet = plain_unet(layout)
    layers = cross_attentions(unet)
    sites = {name: site_of(layer, index, name) for index, (name, layer) in enumerate(layers.items())}
    plans = []
    for prompt in prompts:
        adapter = load_adapter(prompt.path)
        with torch.no_grad():
            tokens = ImageTokens(adapter.project(prompt.cond), adapter.project(prompt.uncond), prompt.path.name)
        strengths = {site.index: prompt.strength(name) for name, site in sites.items()}
        plans.append(make_plan(adapter, tokens, list(sites.values()), strengths, prompt.mask))
    for name, layer in layers.items():
        layer.set_processor(CoreProcessor(plans, sites[name], feature_map=feature_map))
    return forward(unet, layout)


def feature_map(queries: int) -> tuple[int, int]:
    height = round((queries * HEIGHT / WIDTH) ** 0.5)
    return height, queries // height


def assert_equal(layout: str, prompts: Sequence[Prompt]) -> None:
    expected, actual = in_diffusers(layout, prompts), in_core(layout, prompts)
    assert relative(drawn_without(layout), expected) > 1000 * RELATIVE, "the adapter does nothing here"
    error = relative(actual, expected)
    assert error < RELATIVE, f"relative error {error:.2e}"


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("kind", "num_tokens"), [("base", 4), ("plus", 4), ("plus", 16), ("full", 4)])
def test_every_projection(tmp_path: Path, layout: str, kind: str, num_tokens: int) -> None:
    assert_equal(layout, [make_prompt(tmp_path, layout, kind, num_tokens=num_tokens, scale=0.8)])


@pytest.mark.parametrize("kind", ["base", "plus"])
def test_several_references(tmp_path: Path, layout: str, kind: str) -> None:
    assert_equal(layout, [make_prompt(tmp_path, layout, kind, references=3, scale=1.2)])


def test_two_adapters(tmp_path: Path, layout: str) -> None:
    base = make_prompt(tmp_path, layout, "base", references=2, scale=0.6)
    plus = make_prompt(tmp_path, layout, "plus", seed=1, num_tokens=16, scale=-0.9)
    assert_equal(layout, [base, plus])


BLOCK_SCALES: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "sd15": (
        {"down": {"block_1": [0.3, 0.0]}, "mid": 0.5, "up": {"block_1": [0.0, 0.7, 0.0], "block_3": 1.1}},
        {
            "down_blocks.1.attentions.0": 0.3,
            "mid_block": 0.5,
            "up_blocks.1.attentions.1": 0.7,
            "up_blocks.3": 1.1,
        },
    ),
    "sdxl": (  # style and layout after InstantStyle
        {"down": {"block_2": [0.0, 0.7]}, "up": {"block_0": [0.0, 1.2, 0.0]}},
        {"down_blocks.2.attentions.1": 0.7, "up_blocks.0.attentions.1": 1.2},
    ),
}


@pytest.mark.parametrize("kind", ["base", "plus"])
def test_scales_per_block(tmp_path: Path, layout: str, kind: str) -> None:
    scale, block_scales = BLOCK_SCALES[layout]
    assert_equal(layout, [make_prompt(tmp_path, layout, kind, scale=scale, block_scales=block_scales)])


def test_uniform_mask(tmp_path: Path, layout: str) -> None:
    assert_equal(layout, [make_prompt(tmp_path, layout, "base", mask=torch.full((1, 128, 192), 0.5))])


def test_masks_apart_from_their_resampling(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks are resampled otherwise on purpose (test_attention.py); with our resampling in diffusers all is equal."""

    def downsample(mask: Tensor, _batch: int, queries: int, _channels: int) -> Tensor:
        return mask_to_tokens(mask, *feature_map(queries))

    monkeypatch.setattr(IPAdapterMaskProcessor, "downsample", staticmethod(downsample))
    left = torch.zeros(1, 128, 192)
    left[..., :90] = 1
    base = make_prompt(tmp_path, layout, "base", mask=left)
    plus = make_prompt(tmp_path, layout, "plus", seed=1, mask=1 - left)
    assert_equal(layout, [base, plus])
