"""FLUX: one forward with our patches in ComfyUI equals one in diffusers with the same weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from support import comfy_host, families, tiny_flux
from support.families import PLAIN
from support.published import nested
from support.tiny_flux import HEAD_DIM, PATCH, POOLED_DIM, TEXT_DIM

TEXT, TIME, GUIDANCE = 7, 0.6, 3.5
RELATIVE = 1e-4
UNCOND_THEN_COND = [1, 0]
Size = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """An adapter's file and features of its references, on the cond and on the uncond side."""

    name: str
    seed: int = 0
    references: int = 1
    scale: float | list[float] = 1.0

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        return tuple(families.features_of(self.name, self.references, self.seed + side) for side in (1, 2))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Under canonical names."""
        named = comfy_host.pack("ipadapter_core.file.names").canonical_name
        return {named(name): tensor for name, tensor in families.tensors_of(self.name, self.seed).items()}


def inputs(size: Size, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, text and pooled text of both sides: uncond, then cond."""
    generator = torch.Generator().manual_seed(3)
    rows = 2 * batch
    latents = torch.randn(rows, tiny_flux.LATENT_CHANNELS, *size, generator=generator)
    text = torch.randn(rows, TEXT, TEXT_DIM, generator=generator)
    return latents, text, torch.randn(rows, POOLED_DIM, generator=generator)


def packed(latents: Tensor) -> Tensor:
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)


def positions(size: Size, first: int = 0) -> Tensor:
    rows, columns = (torch.arange(side // PATCH, dtype=torch.float32) for side in size)
    grid = torch.cartesian_prod(rows, columns)
    return torch.cat((torch.full((len(grid), 1), float(first)), grid), dim=1)


def in_diffusers(
    transformer: Any,
    size: Size,
    batch: int,
    reference: Tensor | None = None,
    images: list[Tensor] | None = None,
    beside: Tensor | None = None,
) -> Tensor:
    latents, text, pooled = inputs(size, batch)
    hidden, ids = packed(latents if beside is None else torch.cat((latents, beside), dim=1)), positions(size)
    if reference is not None:
        hidden = torch.cat((hidden, packed(reference)), dim=1)
        ids = torch.cat((ids, positions(tuple(reference.shape[-2:]), 1)))
    with torch.no_grad():
        out = transformer(
            hidden,
            text,
            pooled,
            torch.full((2 * batch,), TIME),
            ids,
            torch.zeros(TEXT, 3),
            torch.full((2 * batch,), GUIDANCE) if transformer.config.guidance_embeds else None,
            {"ip_adapter_image_embeds": images} if images else None,
        ).sample[:, : latents[0, 0].numel() // PATCH**2]
    return rearrange(
        out, "b (h w) (c p q) -> b c (h p) (w q)", h=size[0] // PATCH, w=size[1] // PATCH, p=PATCH, q=PATCH
    )


def in_comfyui(
    prompts: Sequence[Prompt], folder: Path, size: Size, batch: int, reference: Tensor | None = None, **other: Any
) -> Tensor:
    """`other`: a `model` than FLUX.1-dev, and what it is given more."""
    model = other.pop("model", None) or families.flux_model()
    for prompt in prompts:
        adapter = families.adapter_of(prompt.name, folder, prompt.seed)
        tokens = adapter.project(*prompt.sides)
        use = PLAIN | {"strength": 1.0 if isinstance(prompt.scale, list) else prompt.scale}
        if isinstance(prompt.scale, list):
            text = ",".join(f"{site}: {scale}" for site, scale in enumerate(prompt.scale))
            groups = dict.fromkeys(("input", "middle", "output", "style", "composition"), 1.0)
            use |= {"layer_weights": comfy_host.run("IPALayerWeights", site_factors=text, **groups)}
        model = comfy_host.run("IPAApply", model=model, adapter=adapter, tokens=tokens, **use)
    latents, text, pooled = inputs(size, batch)
    options = model.model_options["transformer_options"] | {"cond_or_uncond": UNCOND_THEN_COND}
    base = model.model
    sampling, given = base.model_sampling, other
    if reference is not None:
        given["ref_latents"] = [reference]
    sigma = torch.full((2 * batch,), TIME)
    with torch.inference_mode():
        denoised = base.apply_model(
            latents * 1.0,
            sigma,
            c_crossattn=text,
            y=pooled,
            guidance=torch.full((2 * batch,), GUIDANCE),
            transformer_options=options,
            **given,
        )
    return (sampling.calculate_input(sigma, latents) - denoised) / sigma[:, None, None, None]  # flow: x - sigma v


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@lru_cache
def plain(size: Size, batch: int) -> Tensor:
    return in_diffusers(tiny_flux.diffusers_flux(), size, batch)


def assert_equal(actual: Tensor, expected: Tensor, size: Size, batch: int) -> None:
    assert error(actual, expected) < RELATIVE
    assert error(plain(size, batch), expected) > 20 * RELATIVE, "the adapter does nothing here"


@pytest.mark.parametrize(("size", "batch"), [((8, 8), 1), ((6, 12), 2)])
@pytest.mark.parametrize(
    "prompts",
    [
        [Prompt("xlabs_v1")],
        [Prompt("xlabs_v2", scale=0.6)],
        [Prompt("xlabs_v1", scale=-0.7, references=3)],
        [Prompt("xlabs_v1", scale=[0.3, 1.4])],
        [Prompt("xlabs_v1", scale=0.5), Prompt("xlabs_v2", 4, scale=[1.2, 0.4])],
    ],
    ids=["v1", "v2", "references", "scales", "two"],
)
def test_xlabs_adapters(prompts: list[Prompt], size: Size, batch: int, base_directory: Path) -> None:
    actual = in_comfyui(prompts, base_directory, size, batch)
    transformer = tiny_flux.diffusers_flux()
    transformer._load_ip_adapter_weights([nested(prompt.tensors) for prompt in prompts], low_cpu_mem_usage=False)
    for number, name in enumerate(name for name in transformer.attn_processors if name.startswith("transformer_")):
        scales = [prompt.scale if isinstance(prompt.scale, float) else prompt.scale[number] for prompt in prompts]
        transformer.attn_processors[name].scale = scales
    images = [
        torch.cat([side[None].expand(batch, -1, -1) for side in reversed(prompt.sides)]).squeeze(2)
        for prompt in prompts
    ]
    assert_equal(actual, in_diffusers(transformer, size, batch, images=images), size, batch)


class InstantX:
    """An attention processor for diffusers, after the page of InstantX/FLUX.1-dev-IP-Adapter, with nothing of ours."""

    def __init__(self, tensors: dict[str, Tensor], number: int, prompt: Prompt, tokens: int, picture: int) -> None:
        self.scale, self.picture = prompt.scale, picture
        self.key, self.value = (tensors[f"ip_adapter.{number}.to_{kv}_ip.weight"] for kv in "kv")
        self.tokens = [self._tokens(side, tensors, tokens) for side in reversed(prompt.sides)]

    @staticmethod
    def _tokens(features: Tensor, tensors: dict[str, Tensor], tokens: int) -> Tensor:
        proj = {name.removeprefix("image_proj."): tensor for name, tensor in tensors.items()}
        x = torch.nn.functional.gelu(linear(features, proj["proj.0.weight"], proj["proj.0.bias"]))
        x = linear(x, proj["proj.2.weight"], proj["proj.2.bias"]).reshape(1, len(features) * tokens, -1)
        return torch.nn.functional.layer_norm(x, x.shape[-1:], proj["norm.weight"], proj["norm.bias"])

    def image(self, q: Tensor) -> Tensor:
        """(B, L, H, D) to (B, L, H·D)."""
        rows = torch.cat([side.expand(len(q) // 2, -1, -1) for side in self.tokens])
        k, v = (linear(rows, weight).unflatten(-1, (-1, HEAD_DIM)) for weight in (self.key, self.value))
        k, v = (x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() for x in (k, v))
        out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        return self.scale * out.transpose(1, 2).flatten(2)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        from diffusers.models.embeddings import apply_rotary_emb

        def heads(x: Tensor, *names: str) -> list[Tensor]:
            return [getattr(attn, name)(x).unflatten(-1, (attn.heads, -1)) for name in names]

        q, k, v = heads(hidden_states, "to_q", "to_k", "to_v")
        q, k, text = attn.norm_q(q), attn.norm_k(k), 0
        if encoder_hidden_states is not None:
            added = heads(encoder_hidden_states, "add_q_proj", "add_k_proj", "add_v_proj")
            text = added[0].shape[1]
            q = torch.cat((attn.norm_added_q(added[0]), q), dim=1)
            k = torch.cat((attn.norm_added_k(added[1]), k), dim=1)
            v = torch.cat((added[2], v), dim=1)
        turned = [apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k)]
        out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (*turned, v))).transpose(1, 2).flatten(2)
        end = TEXT + self.picture
        out = torch.cat((out[:, :text], out[:, text:end] + self.image(q[:, text:end]), out[:, end:]), dim=1)
        if encoder_hidden_states is None:
            return out
        return attn.to_out[1](attn.to_out[0](out[:, text:])), attn.to_add_out(out[:, :text])


def with_instantx(prompt: Prompt, size: Size, transformer: Any = None) -> Any:
    transformer = transformer or tiny_flux.diffusers_flux()
    picture = size[0] * size[1] // PATCH**2
    processors = {
        name: InstantX(prompt.tensors, number, prompt, 6, picture)
        for number, name in enumerate(transformer.attn_processors)
    }
    transformer.set_attn_processor(processors)
    return transformer


@pytest.mark.parametrize(("size", "batch"), [((8, 8), 1), ((6, 12), 2)])
@pytest.mark.parametrize(
    "prompt",
    [Prompt("instantx_flux"), Prompt("instantx_flux", scale=0.6, references=2)],
    ids=["one", "references"],
)
def test_instantx_adapters(prompt: Prompt, size: Size, batch: int, base_directory: Path) -> None:
    actual = in_comfyui([prompt], base_directory, size, batch)
    assert_equal(actual, in_diffusers(with_instantx(prompt, size), size, batch), size, batch)


def with_xlabs(prompt: Prompt, size: Size, transformer: Any = None) -> tuple[Any, list[Tensor]]:
    """diffusers' own, which gives the image to references too: kept from them."""
    transformer = transformer or tiny_flux.diffusers_flux()
    transformer._load_ip_adapter_weights([nested(prompt.tensors)], low_cpu_mem_usage=False)
    picture = size[0] * size[1] // PATCH**2
    for name in [name for name in transformer.attn_processors if name.startswith("transformer_")]:
        transformer.get_submodule(name.removesuffix(".processor")).register_forward_hook(
            lambda _module, _given, out: (*out[:2], torch.cat((out[2][:, :picture], 0 * out[2][:, picture:]), dim=1))
        )
    return transformer, [torch.cat([side[None] for side in reversed(prompt.sides)]).squeeze(2)]


@pytest.mark.parametrize("name", ["instantx_flux", "xlabs_v1"])
def test_references_of_kontext_get_nothing(name: str, base_directory: Path) -> None:
    size, prompt = (8, 8), Prompt(name)
    reference = torch.randn(2, tiny_flux.LATENT_CHANNELS, 8, 4, generator=torch.Generator().manual_seed(9))
    actual = in_comfyui([prompt], base_directory, size, 1, reference)
    transformer, images = with_xlabs(prompt, size) if name == "xlabs_v1" else (with_instantx(prompt, size), None)
    expected = in_diffusers(transformer, size, 1, reference, images)
    assert error(actual, expected) < RELATIVE
    assert error(in_comfyui([prompt], base_directory, size, 1), expected) > 20 * RELATIVE, "the reference does nothing"


@pytest.mark.parametrize("name", ["instantx_flux", "xlabs_v1"])
@pytest.mark.parametrize("kind", ["schnell", "Fill"])
def test_other_models_made_of_flux(kind: str, name: str, base_directory: Path) -> None:
    size, prompt = (6, 12), Prompt(name)
    settings = {"schnell": {"guidance": False}, "Fill": {"beside": 5}}[kind]
    transformer = tiny_flux.diffusers_flux(**settings)
    model, given = tiny_flux.comfy_flux(transformer), {}
    beside = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(9)) if kind == "Fill" else None
    if beside is not None:
        given["c_concat"] = beside
    bare = in_diffusers(transformer, size, 1, beside=beside)
    changed, images = with_xlabs(prompt, size, transformer) if name == "xlabs_v1" else (None, None)
    changed = changed or with_instantx(prompt, size, transformer)
    expected = in_diffusers(changed, size, 1, images=images, beside=beside)
    actual = in_comfyui([prompt], base_directory, size, 1, model=model, **given)
    assert error(actual, expected) < RELATIVE
    assert error(bare, expected) > 20 * RELATIVE, "the adapter does nothing here"
