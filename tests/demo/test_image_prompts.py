"""How the demo's base model is taught to follow image prompts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from demo.world import base, lessons
from demo.world.apart import draw_pairs
from demo.world.base import UNET, Taught, train_base
from demo.world.glances import Outputs, glance_error
from demo.world.image_prompts import CELLS, SPARE, WordsOf, own_words
from demo.world.lessons import HALVES, LESSONS, Lesson, Lessons, captions_of
from demo.world.pictures import Picture
from ipadapter_trainer.backbones.unet_attention import DecoupledAttention
from support.letters import letters


def test_lessons_share_everything_and_use_captions_that_exist() -> None:
    assert sum(lesson.share for lesson in LESSONS) == pytest.approx(1)
    assert {lesson.caption for lesson in LESSONS} == {HALVES, *captions_of(letters()[0])}


@pytest.mark.parametrize("side", list(CELLS))
def test_a_word_tells_of_its_own_cells_and_nothing_else(side: int) -> None:
    torch.manual_seed(0)
    latents = torch.randn(1, 4, 8, 8)
    changed = latents.clone()
    changed[..., :side, -side:] += 1  # the last place of the first row
    words, others = WordsOf(side)(latents), WordsOf(side)(changed)
    assert words.shape == (1, (8 // side) ** 2, 768)
    assert not words[..., -SPARE:].any()
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


def test_words_never_show_what_is_held_out() -> None:
    taught, pictures = _lessons(), letters()
    seen = set()
    for step in range(30):
        batch = taught.draw(4, 1000, torch.Generator().manual_seed(step))
        if batch.words.shape[1] == 16:
            seen |= set(_numbers(batch.words)[batch.shown.flatten(1).any(1)].tolist())
    assert seen == {number for number, picture in enumerate(pictures) if not picture.is_held_out}


def test_a_style_word_shows_the_other_style(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "LESSONS", (Lesson("style", 1.0, other_style=True),))
    batch = _lessons().draw(32, 1000, torch.Generator().manual_seed(2))
    assert batch.words.shape[1] == 16
    drawn = batch.x[:, 0, 0, 0].int().tolist()
    assert _numbers(batch.words).tolist() == [{0: 1, 1: 0, 2: 2}[number] for number in drawn]  # b has one style only


def test_of_two_halves_one_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "LESSONS", (Lesson(HALVES, 1.0),))
    batch = _lessons().draw(32, 1000, torch.Generator().manual_seed(2))
    assert batch.shown.sum(dim=(1, 2)).unique().tolist() == [32]
    left = batch.shown[:, 0, 0]
    assert left.any()
    assert not left.all()
    shown = torch.where(left, batch.x[:, 0, 0, 0], batch.x[:, 0, 0, -1])
    assert torch.equal(_numbers(batch.words), shown.int())
    assert (batch.x[:, 0, 0, 0] != batch.x[:, 0, 0, -1]).any()


@pytest.mark.parametrize("side", list(CELLS))
def test_a_cell_s_own_word_is_the_one_that_tells_of_it(side: int) -> None:
    words_of = WordsOf(side)
    own = own_words(words_of.places**2)
    for cell in (0, 13, 34, 63):
        latents = torch.zeros(1, 4, 8, 8)
        latents[..., cell // 8, cell % 8] = 1
        assert (words_of(latents) - words_of.place)[0].any(dim=1).nonzero().tolist() == [[int(own[cell])]]


def test_a_glance_at_the_own_key_is_right() -> None:
    keys = torch.eye(4)[None].repeat(2, 1, 3)  # the same in three heads
    queries = 30 * keys[:, [3, 1]]
    queries[..., 8:] *= -1  # the third head looks elsewhere
    error = glance_error(queries, keys, torch.tensor([3, 0]), heads=3, guided=2)
    assert error.shape == (2, 2)
    assert error[:, 0].max() < 1e-3
    assert error[:, 1].min() > 10
    assert glance_error(queries, keys, torch.tensor([3, 0]), heads=3, guided=3)[:, 0].min() > 4


def test_outputs_are_heard_until_the_end() -> None:
    modules = [nn.Linear(2, 2), nn.Identity()]
    outputs = Outputs(modules)
    given = torch.ones(1, 2)
    expected = [module(given) for module in modules]
    assert all(map(torch.equal, outputs(), expected))
    outputs.close()
    assert not any(module._forward_hooks for module in modules)


def test_hints_count_where_a_prompt_holds_and_are_read_at_the_right_cell() -> None:
    torch.manual_seed(0)
    taught = Taught(UNet2DConditionModel(**UNET))
    for read in taught.read:
        nn.init.zeros_(read.weight)
        nn.init.zeros_(read.bias)
    batch = _lessons().draw(2, 1000, torch.Generator().manual_seed(0))
    reference = torch.zeros(2, 4, 8, 8)
    reference[..., 7, 7] = 1000
    losses = {}
    for name, cell in {"none": None, "of that cell": (7, 7), "of another": (7, 0)}.items():
        shown = torch.zeros(2, 8, 8, dtype=torch.bool)
        if cell:
            shown[:, cell[0], cell[1]] = True
        given = replace(batch, reference=reference, shown=shown)
        losses[name] = taught(given, torch.Generator().manual_seed(1)).item()
    assert losses["of that cell"] > 1000 * losses["of another"]
    assert losses["none"] < losses["of another"]
    taught.close()


def test_the_base_model_is_left_as_diffusers_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for recipe in ("RECIPE", "APART"):
        monkeypatch.setattr(base, recipe, replace(getattr(base, recipe), steps=2, warmup=1))
    monkeypatch.setattr(base, "BATCH", 2)
    monkeypatch.setattr(base, "PAIRS", 1)
    paired: list[Tensor] = []
    monkeypatch.setattr(base, "draw_pairs", lambda latents, *rest: paired.append(latents) or draw_pairs(latents, *rest))
    pictures = letters()
    latents = torch.randn(len(pictures), 4, 8, 8)
    model = train_base(pictures, latents, _text(pictures), tmp_path)
    torch.manual_seed(0)
    fresh = UNet2DConditionModel(**UNET)
    assert {type(processor) for processor in model.attn_processors.values()} == {
        type(processor) for processor in fresh.attn_processors.values()
    }
    assert set(model.state_dict()) == set(fresh.state_dict())
    assert not any(module._forward_hooks for module in model.modules())
    unchanged = [name for name, value in fresh.state_dict().items() if torch.equal(value, model.state_dict()[name])]
    assert not unchanged
    assert [(tmp_path / part / "losses.jsonl").read_text().count("\n") for part in (".", "apart")] == [2, 2]
    assert torch.equal(paired[0], latents[[not picture.is_held_out for picture in pictures]])


def _lessons() -> Lessons:
    """Of pictures whose latents are their number everywhere."""
    pictures = letters()
    latents = torch.arange(len(pictures)).float()[:, None, None, None].expand(-1, 4, 8, 8)
    return Lessons(pictures, latents, _text(pictures))


def _numbers(words: Tensor) -> Tensor:
    """(B,): which of those pictures the words show."""
    words_of = WordsOf(2)
    return ((words - words_of.place) @ torch.linalg.pinv(words_of.directions)).mean(dim=(1, 2)).round().int()


def _text(pictures: list[Picture]) -> dict[str, Tensor]:
    captions = {HALVES} | {caption for picture in pictures for caption in captions_of(picture).values()}
    return {caption: torch.zeros(77, 768) for caption in captions}
