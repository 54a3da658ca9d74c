"""The guard: what it takes away, and what it leaves."""

import pytest
import torch
from torch import Tensor

from ipadapter_core.branch.attention import add_image_attention, add_to_tokens
from ipadapter_core.branch.guard import NO_GUARD, Guard
from ipadapter_core.branch.tokens import ImageTokens, with_noise

ROWS, LENGTH, CHANNELS = 2, 12, 8


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OUT, IMAGE = draw(ROWS, LENGTH, CHANNELS, seed=1), 3 * draw(ROWS, LENGTH, CHANNELS, seed=2)


def test_orthogonal_leaves_nothing_along_the_text() -> None:
    added = Guard(orthogonal=1.0).held_back(OUT, IMAGE)
    assert (added * OUT).sum(dim=-1).abs().max() < 1e-9
    half = Guard(orthogonal=0.5).held_back(OUT, IMAGE)
    torch.testing.assert_close(half, (added + IMAGE) / 2)


def test_rescale_gives_the_spread_of_the_text_alone() -> None:
    spread = [(OUT + Guard(rescale=amount).held_back(OUT, IMAGE)).std(dim=(1, 2)) for amount in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(spread[2], OUT.std(dim=(1, 2)))
    assert (spread[0] > spread[1]).all()
    assert (spread[1] > spread[2]).all()


def test_a_weight_counts_before() -> None:
    mask = torch.zeros(1, LENGTH, 1, dtype=torch.float64)
    mask[:, :5] = 0.5
    added = Guard(orthogonal=1.0).held_back(OUT, IMAGE, mask)
    torch.testing.assert_close(added[:, :5], Guard(orthogonal=1.0).held_back(OUT, IMAGE)[:, :5] / 2)
    assert added[:, 5:].abs().max() == 0


@pytest.mark.parametrize("guard", [NO_GUARD, Guard(orthogonal=0.7), Guard(rescale=0.7), Guard(0.5, 0.5)])
@pytest.mark.parametrize("first", [0, 4])
def test_both_ways_of_adding_agree(guard: Guard, first: int) -> None:
    heads = IMAGE.unflatten(-1, (2, 4)).transpose(1, 2)
    mask, gate = draw(1, LENGTH, 1, seed=3).sigmoid(), torch.tensor(0.8, dtype=torch.float64)
    wanted = add_image_attention(OUT, 0.5 * IMAGE, mask, gate, guard=guard)
    sequence = torch.cat((draw(ROWS, first, CHANNELS, seed=5), OUT), dim=1)
    given = add_to_tokens(sequence.clone(), heads, first, mask, gate, 0.5, guard)
    torch.testing.assert_close(given[:, first:], wanted)
    assert torch.equal(given[:, :first], sequence[:, :first])


def test_text_that_is_nothing_is_no_division_by_zero() -> None:
    added = Guard(1.0, 1.0).held_back(torch.zeros_like(OUT), IMAGE)
    assert added.isfinite().all()


def test_noise_is_on_the_negative_side_alone_and_always_the_same() -> None:
    tokens = ImageTokens(draw(2, 4, 8, seed=1), torch.zeros(1, 4, 8, dtype=torch.float64), "a")
    noisy = with_noise(tokens, 0.5)
    assert torch.equal(noisy.cond, tokens.cond)
    assert float(noisy.uncond.std()) == pytest.approx(0.5 * float(tokens.cond.std()), rel=0.4)
    assert noisy.digest == with_noise(tokens, 0.5).digest
    assert with_noise(tokens, 0.0) is tokens


@pytest.mark.parametrize("numbers", [(1.5, 0, 0), (0, -0.1, 0), (0, 0, 2)])
def test_numbers_outside(numbers: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"Expected: a number from 0 \(off\) to 1"):
        Guard(*numbers)
