"""Qwen-Image: one forward with our patches in ComfyUI equals diffusers' model with the plain formula in its attention."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import apply_rotary_emb_qwen
from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from support import families, tiny_qwen_image
from support.plain_studio import Branch, Use, applied, error
from support.tiny_qwen_image import BLOCKS, LATENT_CHANNELS, PATCH, TEXT_DIM

NAME, TIME, RELATIVE = "qwen_image", 0.6, 1e-4
Size = tuple[int, int]
pytestmark = pytest.mark.smoke


class Processor:
    """Attention over text and picture, and the image branch for the picture's tokens before their output projection."""

    def __init__(self, branch: Branch | None, cells: int) -> None:
        self.branch, self.cells = branch, cells

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        def heads(x: Tensor, *names: str) -> list[Tensor]:
            return [getattr(attn, name)(x).unflatten(-1, (attn.heads, -1)) for name in names]

        q, k, v = heads(hidden_states, "to_q", "to_k", "to_v")
        text_q, text_k, text_v = heads(encoder_hidden_states, "add_q_proj", "add_k_proj", "add_v_proj")
        q, k, text_q, text_k = attn.norm_q(q), attn.norm_k(k), attn.norm_added_q(text_q), attn.norm_added_k(text_k)
        of_picture, of_text = image_rotary_emb
        turned = [
            torch.cat([apply_rotary_emb_qwen(x, of, use_real=False) for x, of in pair], dim=1)
            for pair in (((text_q, of_text), (q, of_picture)), ((text_k, of_text), (k, of_picture)))
        ]
        parts = (*turned, torch.cat((text_v, v), dim=1))
        out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in parts)).transpose(1, 2).flatten(2)
        text, picture = out.split((text_q.shape[1], q.shape[1]), dim=1)
        if self.branch is not None:
            added = picture[:, : self.cells] + self.branch(q[:, : self.cells])
            picture = torch.cat((added, picture[:, self.cells :]), dim=1)
        return attn.to_out[0](picture), attn.to_add_out(text)


def inputs(size: Size, batch: int, words: int = 7) -> tuple[Tensor, Tensor]:
    """Latents and text of both sides: uncond, then cond."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2 * batch, LATENT_CHANNELS, 1, *size, generator=generator)
    return latents, torch.randn(2 * batch, words, TEXT_DIM, generator=generator)


def packed(latents: Tensor) -> Tensor:
    return rearrange(latents, "b c 1 (h p) (w q) -> b (h w) (c p q)", p=PATCH, q=PATCH)


def in_diffusers(uses: Sequence[Use], size: Size, batch: int, reference: Tensor | None = None) -> Tensor:
    transformer = tiny_qwen_image.diffusers_qwen_image()
    cells = size[0] * size[1] // PATCH**2
    for number, block in enumerate(transformer.transformer_blocks):
        block.attn.set_processor(Processor(Branch(uses, number) if uses else None, cells))
    latents, text = inputs(size, batch)
    hidden, shapes = packed(latents), [(1, size[0] // PATCH, size[1] // PATCH)]
    if reference is not None:
        hidden = torch.cat((hidden, packed(reference)), dim=1)
        shapes.append((1, reference.shape[-2] // PATCH, reference.shape[-1] // PATCH))
    with torch.no_grad():
        out = transformer(
            hidden, text, timestep=torch.full((len(latents),), TIME), img_shapes=[shapes] * len(latents)
        ).sample
    return rearrange(
        out[:, :cells], "b (h w) (c p q) -> b c 1 (h p) (w q)", h=size[0] // PATCH, w=size[1] // PATCH, p=PATCH, q=PATCH
    )


def in_comfyui(uses: Sequence[Use], folder: Path, size: Size, batch: int, **given: Any) -> Tensor:
    model = applied(families.model_of(NAME), uses, folder)
    latents, text = inputs(size, batch)
    options = model.model_options["transformer_options"] | {"cond_or_uncond": [1, 0]}
    with torch.inference_mode():
        return model.model.diffusion_model(
            latents, torch.full((len(latents),), TIME), text, transformer_options=options, **given
        )


USES = {
    "one": [Use(NAME)],
    "references": [Use(NAME, references=3, scale=-0.7)],
    "blocks": [Use(NAME, scale=[0.3, 1.4, 0.0])],
    "two": [Use(NAME, scale=0.5), Use(NAME, 4, scale=[1.2, 0.4, 1.0])],
}


@pytest.mark.parametrize(("size", "batch"), [((8, 8), 1), ((4, 12), 2)])
@pytest.mark.parametrize("kind", USES)
def test_a_forward(kind: str, size: Size, batch: int, base_directory: Path) -> None:
    uses = USES[kind]
    assert len(tiny_qwen_image.diffusers_qwen_image().transformer_blocks) == BLOCKS
    actual, expected = in_comfyui(uses, base_directory, size, batch), in_diffusers(uses, size, batch)
    assert error(actual, expected) < RELATIVE
    assert error(in_diffusers([], size, batch), expected) > 20 * RELATIVE, "the adapter does nothing here"


def test_reference_latents_get_nothing(base_directory: Path) -> None:
    size, uses = (8, 8), USES["one"]
    reference = torch.randn(2, LATENT_CHANNELS, 1, 8, 4, generator=torch.Generator().manual_seed(9))
    actual = in_comfyui(uses, base_directory, size, 1, ref_latents=[reference])
    expected = in_diffusers(uses, size, 1, reference)
    assert error(actual, expected) < RELATIVE
    assert error(in_comfyui(uses, base_directory, size, 1), expected) > 20 * RELATIVE, "the reference does nothing"


def test_an_older_comfyui_is_refused_by_its_version(base_directory: Path) -> None:
    model = tiny_qwen_image.comfy_qwen_image(tiny_qwen_image.diffusers_qwen_image(), in_any=True)
    if tiny_qwen_image.asks_about_queries():
        assert applied(model, USES["one"], base_directory) is not model
        return
    with pytest.raises(ValueError, match=r"Qwen-Image models ask no attn1_patch\. Expected: ComfyUI 0\.18\.2 or newer"):
        applied(model, USES["one"], base_directory)


def test_a_patch_of_another_pack_acts_before_the_image_asks(base_directory: Path) -> None:
    """Whichever of the two came first."""
    calls: list[int] = []

    def halve(q: Tensor, k: Tensor, v: Tensor, *, extra_options: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        calls.append(extra_options["block_index"])
        return {"q": q * 0.5}

    def with_halving(model: Any) -> Any:
        clone = model.clone()
        clone.set_model_attn1_patch(halve)
        return clone

    model = families.model_of(NAME)
    drawn = [
        families.sample(NAME, given, steps=1, cfg=1.0)
        for given in (
            applied(with_halving(model), USES["one"], base_directory),
            with_halving(applied(model, USES["one"], base_directory)),
            applied(model, USES["one"], base_directory),
            with_halving(model),
        )
    ]
    assert calls == [*range(BLOCKS)] * 3
    assert torch.equal(drawn[0], drawn[1])
    assert all(families.differs(drawn[0], other) for other in drawn[2:])
