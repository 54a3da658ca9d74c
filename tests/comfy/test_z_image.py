"""Z-Image: one forward with our patches in ComfyUI equals diffusers' model with the plain formula in its attention."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from support import comfy_host, families, tiny_z_image
from support.plain_studio import Branch, Use, applied, error
from support.tiny_z_image import HEAD_DIM, LATENT_CHANNELS, PATCH, TEXT_DIM

NAME, TIME, RELATIVE = "z_image", 0.6, 1e-4
Size = tuple[int, int]
pytestmark = pytest.mark.smoke_long


class Processor:
    """Attention over picture and text, in this order, and the image branch for the picture's own cells."""

    def __init__(self, branch: Branch | None, cells: int) -> None:
        self.branch, self.cells = branch, cells

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        q, k, v = (
            getattr(attn, name)(hidden_states).unflatten(-1, (attn.heads, -1)) for name in ("to_q", "to_k", "to_v")
        )
        q, k = attn.norm_q(q), attn.norm_k(k)

        def turned(x: Tensor) -> Tensor:
            return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * freqs_cis[:, :, None]).flatten(
                3
            )

        parts = (turned(q), turned(k), v)
        out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in parts)).transpose(1, 2).flatten(2)
        if self.branch is not None:
            out = torch.cat((out[:, : self.cells] + self.branch(q[:, : self.cells]), out[:, self.cells :]), dim=1)
        return attn.to_out[0](out)


def inputs(size: Size, batch: int, words: int = 7) -> tuple[Tensor, Tensor]:
    """Latents and text of both sides: uncond, then cond."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2 * batch, LATENT_CHANNELS, *size, generator=generator)
    return latents, torch.randn(2 * batch, words, TEXT_DIM, generator=generator)


def in_diffusers(uses: Sequence[Use], size: Size, batch: int, words: int = 7) -> Tensor:
    transformer = tiny_z_image.diffusers_z_image()
    for number, layer in enumerate(transformer.layers):
        branch = Branch(uses, number) if uses else None
        layer.attention.set_processor(Processor(branch, size[0] * size[1] // PATCH**2))
    latents, text = inputs(size, batch, words)
    with torch.no_grad():
        out = transformer(list(latents[:, :, None]), torch.full((len(latents),), 1 - TIME), list(text)).sample
    return -torch.stack(list(out))[:, :, 0]


def in_comfyui(
    uses: Sequence[Use], folder: Path, size: Size, batch: int, words: int = 7, options: Any = None, **given: Any
) -> Tensor:
    model = applied(families.model_of(NAME), uses, folder)
    latents, text = inputs(size, batch, words)
    options = model.model_options["transformer_options"] | {"cond_or_uncond": [1, 0]} | (options or {})
    with torch.inference_mode():
        return model.model.diffusion_model(
            latents, torch.full((len(latents),), TIME), text, words, transformer_options=options, **given
        )


USES = {
    "one": [Use(NAME)],
    "references": [Use(NAME, references=3, scale=-0.7)],
    "blocks": [Use(NAME, scale=[0.3, 1.4, 0.0])],
    "two": [Use(NAME, scale=0.5), Use(NAME, 4, scale=[1.2, 0.4, 1.0])],
}


@pytest.mark.parametrize(
    ("size", "batch", "words"), [((8, 8), 1, 7), ((4, 12), 2, 40), ((16, 8), 1, 32)], ids=["8x8", "4x12", "16x8"]
)
@pytest.mark.parametrize("kind", USES)
def test_a_forward(kind: str, size: Size, batch: int, words: int, base_directory: Path) -> None:
    """Pictures and texts that are padded, and that are not."""
    uses = USES[kind]
    actual = in_comfyui(uses, base_directory, size, batch, words)
    expected = in_diffusers(uses, size, batch, words)
    assert error(actual, expected) < RELATIVE
    assert error(in_diffusers([], size, batch, words), expected) > 20 * RELATIVE, "the adapter does nothing here"


class Asked:
    """What every layer over text and picture asks with before positions, and what the image branch asks with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sequence = comfy_host.pack("nodes.patching.sequence")
        self.picture: list[Tensor] = []
        images = sequence.images

        def noted(step: Any, q: Tensor, *more: Any) -> Any:
            self.picture.append(q)
            return images(step, q, *more)

        monkeypatch.setattr(sequence, "images", noted)
        self.all: list[Tensor] = []
        self.handles = [
            layer.attention.qkv.register_forward_hook(self._layer(layer.attention)) for layer in self.network.layers
        ]

    @property
    def network(self) -> Any:
        return families.model_of(NAME).model.diffusion_model

    def _layer(self, attention: Any) -> Any:
        def hook(_module: Any, _given: Any, out: Tensor) -> None:
            q = out.chunk(3, dim=-1)[0].unflatten(-1, (-1, HEAD_DIM))
            self.all.append(attention.q_norm(q).transpose(1, 2))

        return hook

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, base_directory: Path) -> Iterator[Asked]:
    found = Asked(monkeypatch)
    yield found
    found.stop()


def test_behind_reference_latents_only_the_picture_asks(asked: Asked, base_directory: Path) -> None:
    """Of a picture of 16 tokens, padded to 32, behind two of other sizes."""
    generator = torch.Generator().manual_seed(9)
    references = [torch.randn(2, LATENT_CHANNELS, *size, generator=generator) for size in ((8, 4), (16, 10))]
    in_comfyui(USES["one"], base_directory, (8, 8), 1, ref_latents=references)
    assert len(asked.picture) == len(asked.all) == tiny_z_image.BLOCKS
    for picture, whole in zip(asked.picture, asked.all, strict=True):
        assert whole.shape[2] == 3 * 32 + 32 + 64 + 32  # a text for each, then the pictures
        torch.testing.assert_close(picture, whole[:, :, -32:-16], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1.0, 1.3])
def test_positions_that_a_pack_stretches_are_taken_out(
    asked: Asked, base_directory: Path, length: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other places, and other lengths, which make attention sharper."""
    embed = asked.network.rope_embedder.forward
    monkeypatch.setattr(asked.network.rope_embedder, "forward", lambda ids: length * embed(ids))
    options = {"rope_options": {"scale_y": 1.7, "scale_x": 0.4, "shift_y": 5.0, "shift_x": 3.0}}
    in_comfyui(USES["one"], base_directory, (8, 8), 1, options=options)
    for picture, whole in zip(asked.picture, asked.all, strict=True):
        torch.testing.assert_close(picture, whole[:, :, -32:-16], rtol=1e-4, atol=1e-5)


def test_a_forward_leaves_nothing_in_the_options(base_directory: Path) -> None:
    """A pack may run the network twice with the same: the second time with a longer text than text and picture were."""
    model = applied(families.model_of(NAME), USES["one"], base_directory)
    options = model.model_options["transformer_options"] | {"cond_or_uncond": [1, 0]}
    both = [inputs((8, 8), 1, words) for words in (7, 90)]
    with torch.inference_mode():
        for latents, text in both:
            again = model.model.diffusion_model(
                latents, torch.full((2,), TIME), text, text.shape[1], transformer_options=options
            )
    assert error(again, in_comfyui(USES["one"], base_directory, (8, 8), 1, 90)) == 0


def test_a_patch_of_another_pack_behind_the_refiner_is_kept(base_directory: Path) -> None:
    """As ComfyUI's own ControlNet for Z-Image puts one there."""
    calls: list[int] = []

    def double(arguments: dict[str, Any]) -> dict[str, Any]:
        calls.append(arguments["block_index"])
        return {"img": arguments["img"] * 2}

    def with_double(model: Any) -> Any:
        clone = model.clone()
        clone.set_model_noise_refiner_patch(double)
        return clone

    model = families.model_of(NAME)
    drawn = [
        families.sample(NAME, given, steps=1, cfg=1.0)
        for given in (
            applied(with_double(model), USES["one"], base_directory),
            with_double(applied(model, USES["one"], base_directory)),
            applied(model, USES["one"], base_directory),
            with_double(model),
        )
    ]
    assert calls == [*range(tiny_z_image.REFINERS)] * 3
    assert torch.equal(drawn[0], drawn[1])
    assert all(families.differs(drawn[0], other) for other in drawn[2:])
