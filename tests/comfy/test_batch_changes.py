"""Packs that change the batch inside or around the model: every row gets what it would get alone, or an error says why."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from support import batch_changes, tiny_unet

BATCHES = (1, 3)
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
pytestmark = pytest.mark.parametrize("layout", tiny_unet.EITHER_LAYOUT)


def text(seed: int, tokens: int = 7) -> Tensor:
    return torch.randn(1, tokens, tiny_unet.CONTEXT_DIM, generator=torch.Generator().manual_seed(seed))


def positive(batch: int = 1, size: tuple[int, int] = (8, 8)) -> Tensor:
    """The prompt that the `sample` fixture draws, which takes its noise first."""
    generator = torch.Generator().manual_seed(1)
    torch.randn(batch, 4, *size, generator=generator)
    return torch.randn(1, 7, tiny_unet.CONTEXT_DIM, generator=generator)


def split_batches(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    """As when memory is short: one conditioning a call."""
    monkeypatch.setattr(type(model.model), "memory_required", lambda *_, **__: 1e30)


@pytest.mark.parametrize("together", [True, False], ids=["one batch", "split"])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)], ids=["even", "odd"])
def test_a_couple_of_equal_prompts_changes_nothing(
    setting: tuple,
    apply: Callable,
    sample: Callable,
    count: int,
    together: bool,
    size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, adapter, tokens = setting
    patched = apply(model, adapter, tokens)
    if not together:
        split_batches(monkeypatch, model)
    coupled = batch_changes.couple(patched, [positive(size=size)] * count)
    torch.testing.assert_close(sample(coupled, steps=1, size=size), sample(patched, steps=1, size=size), **CLOSE)


def test_every_prompt_of_a_couple_gets_the_image(
    setting: tuple, apply: Callable, sample: Callable, layout: str
) -> None:
    """The couple takes the mean over its prompts; without text, whose values are 0, the mean of equal images is one."""
    model, adapter, tokens = setting
    texts = [text(20, 5), text(21, 9)]
    plain, patched = model, apply(model, adapter, tokens)
    orders = [batch_changes.couple(patched, texts), apply(batch_changes.couple(plain, texts), adapter, tokens)]
    first, second = (sample(each, steps=1) for each in orders)
    torch.testing.assert_close(first, second, **CLOSE)
    alone = sample(batch_changes.couple(plain, texts), steps=1)
    assert not torch.allclose(first, alone, rtol=1e-2)


@pytest.mark.parametrize("batch", BATCHES)
def test_masks_per_latent_follow_a_couple(setting: tuple, apply: Callable, sample: Callable, batch: int) -> None:
    model, adapter, tokens = setting
    masks = torch.stack([torch.full((8, 8), value) for value in torch.linspace(0, 1, batch + 1)[1:]])
    patched = apply(model, adapter, tokens, mask=masks)
    coupled = batch_changes.couple(patched, [positive(batch)] * 2)
    torch.testing.assert_close(sample(coupled, steps=1, batch=batch), sample(patched, steps=1, batch=batch), **CLOSE)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("count", [2, 3])
def test_regions_that_lengthen_the_list_in_place(
    setting: tuple, apply: Callable, sample: Callable, batch: int, count: int
) -> None:
    model, adapter, tokens = setting
    patched = apply(model, adapter, tokens)
    regional = batch_changes.regions(patched, count)
    torch.testing.assert_close(sample(regional, steps=1, batch=batch), sample(patched, steps=1, batch=batch), **CLOSE)


@pytest.mark.parametrize("batch", BATCHES)
def test_the_number_of_tiles_a_call_changes_nothing(
    setting: tuple, apply: Callable, sample: Callable, batch: int
) -> None:
    model, adapter, tokens = setting
    patched = apply(model, adapter, tokens)
    drawn = [sample(batch_changes.tiles(patched, 4, per_call), steps=1, batch=batch) for per_call in (1, 2, 3, 4)]
    for each in drawn[1:]:
        torch.testing.assert_close(each, drawn[0], **CLOSE)
    assert not torch.allclose(drawn[0], sample(batch_changes.tiles(model, 4, 4), steps=1, batch=batch), rtol=1e-2)


def test_a_mask_is_cut_for_tiles_whose_place_is_known(
    setting: tuple, apply: Callable, sample: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    model, adapter, tokens = setting
    masks = torch.zeros(1, 64, 64)
    masks[:, :, 32:] = 1  # only the tiles on the right

    def draw(patched: Any) -> Tensor:
        return sample(batch_changes.tiles(patched, 8, 1, as_views=True), steps=1, size=(16, 16))

    with caplog.at_level(logging.WARNING):
        given = draw(apply(model, adapter, tokens, mask=masks))
    without, whole = draw(model), draw(apply(model, adapter, tokens))
    assert torch.equal(given[..., :8], without[..., :8])
    torch.testing.assert_close(given[..., 8:], whole[..., 8:], **CLOSE)
    assert "tiles" not in caplog.text


def test_a_mask_over_tiles_whose_place_is_unknown_is_said_once(
    setting: tuple, apply: Callable, sample: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    model, adapter, tokens = setting
    patched = apply(model, adapter, tokens, mask=torch.ones(1, 8, 8).triu())
    with caplog.at_level(logging.WARNING):
        sample(batch_changes.tiles(patched, 4, 2), steps=2)
    assert [record.message.count("the mask of the IP-Adapter is laid on every tile") for record in caplog.records] == [
        1
    ]


def test_rows_that_fit_no_pattern_are_refused(setting: tuple, apply: Callable, sample: Callable) -> None:
    model, adapter, tokens = setting
    patched = apply(model, adapter, tokens)

    def drop(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        return q[1:], k[1:], v[1:]

    patched.set_model_attn2_patch(drop)
    with pytest.raises(ValueError, match=r"called with 3 rows, for conditionings \(.*\) of 2 latents each"):
        sample(patched, steps=1, batch=2)
