"""How the demo's base model is taught to follow image prompts."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from demo.world import image_prompts
from demo.world.base import HALVES, UNET, captions_of
from demo.world.image_prompts import CELLS, LESSONS, WordsOf, train_image_prompts
from demo.world.pictures import Picture
from support.letters import letters
from trainer.models.processor import DecoupledAttention


def test_lessons_share_everything_and_use_captions_that_exist() -> None:
    assert sum(lesson.share for lesson in LESSONS) == pytest.approx(1)
    assert {lesson.caption for lesson in LESSONS} <= {HALVES, *captions_of(letters()[0])}


@pytest.mark.parametrize("side", list(CELLS))
def test_a_word_tells_of_its_own_cells_and_nothing_else(side: int) -> None:
    torch.manual_seed(0)
    latents = torch.randn(1, 4, 8, 8)
    changed = latents.clone()
    changed[..., :side, -side:] += 1  # the last place of the first row
    words, others = WordsOf(side)(latents), WordsOf(side)(changed)
    assert words.shape == (1, (8 // side) ** 2, 768)
    assert (words != others).any(dim=2).nonzero()[:, 1].tolist() == [8 // side - 1]


@pytest.mark.parametrize("side", list(CELLS))
def test_latents_can_be_read_off_their_words(side: int) -> None:
    torch.manual_seed(0)
    words_of = WordsOf(side)
    latents = torch.randn(2, 4, 8, 8)
    read = (words_of(latents) - words_of(torch.zeros(1, 4, 8, 8))) @ torch.linalg.pinv(words_of.directions)
    assert read[:, 0].unflatten(1, (4, side, side)).sub(latents[..., :side, :side]).abs().max() < 1e-4


def test_the_second_context_is_added_where_the_gate_is_open() -> None:
    torch.manual_seed(0)
    attention = Attention(query_dim=64, cross_attention_dim=768, heads=4, dim_head=16).eval()
    hidden, text, words = torch.randn(2, 64, 64), torch.randn(2, 77, 768), torch.randn(2, 16, 768)
    plain = attention(hidden, text)
    gate = torch.zeros(2, 64, 1)
    gate[:, ::2] = 1
    attention.set_processor(DecoupledAttention(0))
    out = attention(hidden, text, image_kv=[(attention.to_k(words), attention.to_v(words))], image_mask=gate)
    assert torch.allclose(out[:, 1::2], plain[:, 1::2], atol=1e-6)
    without_bias = attention.to_out[0].bias
    attention.set_processor(type(Attention(64).processor)())
    alone = attention(hidden, words)
    assert torch.allclose(out[:, ::2], plain[:, ::2] + alone[:, ::2] - without_bias, atol=1e-5)


def test_words_never_show_what_is_held_out_and_a_style_word_shows_the_other_style() -> None:
    pictures, model = letters(), _Blank()
    latents = torch.arange(len(pictures)).float()[:, None, None, None].expand(-1, 4, 8, 8)
    loss_at = image_prompts._loss(
        pictures, latents, _text(pictures), [SimpleNamespace(to_k=nn.Identity(), to_v=nn.Identity())]
    )
    empty = WordsOf(2)(torch.zeros(1, 4, 8, 8))
    scale = WordsOf(2)(torch.ones(1, 4, 8, 8)) - empty
    seen = set()
    for step in range(30):
        loss_at(model, torch.Generator().manual_seed(step))
        ((words, _),) = model.prompt["image_kv"]
        if words.shape[1] == empty.shape[1]:
            numbers = ((words - empty) / scale).mean(dim=(1, 2)).round().int()
            seen |= set(numbers[model.prompt["image_mask"].flatten(1).any(1)].tolist())
    assert seen == {number for number, picture in enumerate(pictures) if not picture.is_held_out}
    assert image_prompts._in_other_style(pictures).tolist() == [1, 0, 2, 4, 3]  # b has one style only


def test_only_attention_is_trained_and_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_prompts, "RECIPE", replace(image_prompts.RECIPE, steps=2, warmup=1))
    monkeypatch.setattr(image_prompts, "BATCH", 2)
    torch.manual_seed(0)
    model = UNet2DConditionModel(**UNET)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    processors = model.attn_processors
    pictures = letters()
    train_image_prompts(model, pictures, torch.randn(len(pictures), 4, 8, 8), _text(pictures), tmp_path)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert set(before) == set(model.state_dict())
    assert changed
    assert all("attentions" in name for name in changed)
    assert model.attn_processors == processors


class _Blank(nn.Module):
    """Stands for a UNet where only what it is given matters."""

    def forward(self, noised: Tensor, t: Tensor, context: Tensor, cross_attention_kwargs: dict[str, Any]) -> "_Blank":
        self.prompt = cross_attention_kwargs
        self.sample = torch.zeros_like(noised)
        return self


def _text(pictures: list[Picture]) -> dict[str, Tensor]:
    captions = {HALVES} | {caption for picture in pictures for caption in captions_of(picture).values()}
    return {caption: torch.zeros(77, 768) for caption in captions}
