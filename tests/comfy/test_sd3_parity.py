"""SD3.5 with InstantX's adapter: ComfyUI with our patches draws what diffusers' own classes do with the same weights."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor

from support import comfy_host, families, tiny_sd3
from support.published import nested

NAME, SIZE, RELATIVE = "instantx_sd35", 10, 1e-4
BASES: dict[str, dict[str, Any]] = {"SD3.5-Large": {}, "SD3.5-Medium": {"dual": (0, 1)}, "SD3": {"qk_norm": None}}
pytestmark = pytest.mark.parametrize("base", BASES)


@pytest.fixture
def adapter(base_directory: Path) -> Any:
    return families.adapter_of(NAME, base_directory)


@pytest.fixture
def model(base: str, base_directory: Path) -> Any:
    return families.sd3_model(**BASES[base])


def with_adapter(base: str, scale: float | list[float]) -> SD3Transformer2DModel:
    """diffusers' model with the adapter, loaded by its own loader; a scale for all blocks, or for each.

    The loader counts the picture's own attention of SD3.5-Medium among the blocks: there it loads into SD3.5-Large first.
    """
    loaded, transformer = tiny_sd3.diffusers_sd3(), tiny_sd3.diffusers_sd3(**BASES[base])
    loaded._load_ip_adapter_weights(nested(families.tensors_of(NAME)), low_cpu_mem_usage=False)
    processors = {name: of for name, of in loaded.attn_processors.items() if name.startswith("transformer_blocks")}
    scales = scale if isinstance(scale, list) else [scale] * len(processors)
    for processor, each in zip(processors.values(), scales, strict=True):
        processor.scale = each
    transformer.set_attn_processor({**transformer.attn_processors, **processors})
    transformer.image_proj = loaded.image_proj
    return transformer.eval()


def prompt(rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    text = torch.randn(rows, 7, tiny_sd3.TEXT_DIM, generator=generator)
    return text, torch.randn(rows, tiny_sd3.POOLED_DIM, generator=generator)


@torch.no_grad()
def in_diffusers(
    transformer: SD3Transformer2DModel, x: Tensor, sigma: float, features: Tensor, batch: tuple[Tensor, Tensor]
) -> Tensor:
    """Rows are uncond, then cond; features for every row."""
    return transformer(
        x,
        encoder_hidden_states=batch[0],
        pooled_projections=batch[1],
        timestep=torch.full((len(x),), 1000 * sigma),
        joint_attention_kwargs={"ip_adapter_image_embeds": features},
        return_dict=False,
    )[0]


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("sigma", [1.0, 0.83, 0.4, 0.02])
@pytest.mark.parametrize("scale", [0.5, [1.0, 0.0, 0.3]], ids=["all", "blocks"])
def test_a_forward(base: str, model: Any, adapter: Any, sigma: float, scale: float | list[float]) -> None:
    latents = 2
    x = torch.randn(2 * latents, 16, SIZE, 8, generator=torch.Generator().manual_seed(0))
    features, batch = families.features_of(NAME), prompt(2 * latents)
    each = torch.cat([part.expand(latents, -1, -1) for part in (torch.zeros_like(features), features)])
    expected = in_diffusers(with_adapter(base, scale), x, sigma, each, batch)
    weights = None
    if isinstance(scale, list):
        neutral = dict.fromkeys(("input", "middle", "output", "style", "composition"), 1.0)
        text = ", ".join(f"joint.{number}: {each}" for number, each in enumerate(scale))
        weights = comfy_host.run("IPALayerWeights", site_factors=text, **neutral)
    patched = families.apply(
        model,
        adapter,
        families.tokens_of(NAME, adapter),
        strength=scale if isinstance(scale, float) else 1.0,
        **({} if weights is None else {"layer_weights": weights}),
    )
    outputs = []
    for each_model in (model, patched):
        options = each_model.model_options["transformer_options"]
        options = options | {"cond_or_uncond": [1, 0], "sigmas": torch.full((latents,), sigma)}
        times = torch.full((len(x),), 1000 * sigma)
        with torch.inference_mode():
            outputs.append(
                model.model.diffusion_model(x, times, context=batch[0], y=batch[1], transformer_options=options)
            )
    plain, actual = outputs
    assert relative(actual, expected) < RELATIVE
    assert relative(plain, expected) > 30 * RELATIVE, "the adapter does nothing here"


def test_a_sampling(base: str, model: Any, adapter: Any) -> None:
    """Euler's method with guidance, through ComfyUI's sampler and by hand."""
    import comfy.samplers

    steps, cfg = 4, 3.0
    patched = families.apply(model, adapter, families.tokens_of(NAME, adapter), strength=0.7)
    actual = families.sample(NAME, patched, steps=steps, cfg=cfg)
    transformer = with_adapter(base, 0.7)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps).tolist()
    features = families.features_of(NAME)
    features = torch.cat((torch.zeros_like(features), features))
    positive, negative = families.prompts_of(NAME)
    batch = (
        torch.cat((negative[0][0], positive[0][0])),
        torch.cat((negative[0][1]["pooled_output"], positive[0][1]["pooled_output"])),
    )
    x = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    for sigma, following in pairwise(sigmas):
        uncond, cond = in_diffusers(transformer, x.repeat(2, 1, 1, 1), sigma, features, batch).chunk(2)
        x = x + (uncond + cfg * (cond - uncond)) * (following - sigma)
    assert relative(actual, model.model.process_latent_out(x)) < RELATIVE
    assert relative(families.sample(NAME, model, steps=steps, cfg=cfg), actual) > 30 * RELATIVE
