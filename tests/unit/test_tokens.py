"""Tokens of several references combine as their method says; equal digests mean equal tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

from ipadapter_core.branch.tokens import COMBINATIONS, ImageTokens, combine
from ipadapter_core.errors import BadInputError, MismatchError


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def part(references: int, seed: int, *, negatives: int = 1, tokens: int = 4) -> ImageTokens:
    return ImageTokens(randn(references, tokens, 6, seed=seed), randn(negatives, tokens, 6, seed=seed + 100), "a")


def test_concat_keeps_every_reference_and_its_negative() -> None:
    first, second = part(2, 1), part(3, 2, negatives=3)
    both = combine([first, second], "concat", [1.0, 0.5])
    assert torch.equal(both.cond, torch.cat((first.cond, second.cond * 0.5)))
    assert torch.equal(both.uncond, torch.cat((first.uncond.expand(2, -1, -1), second.uncond)))
    assert both.adapter_id == "a"


@pytest.mark.parametrize("factors", [[1.0, 1.0], [0.5, 2.0], [1.0, -1.0], [0.0, 1.0]])
@pytest.mark.parametrize("method", [name for name in COMBINATIONS if name not in ("concat", "norm average")])
def test_every_method_works_on_the_weighted_references(method: str, factors: list[float]) -> None:
    first, second = part(2, 1), part(1, 2)
    x = torch.cat((first.cond * factors[0], second.cond * factors[1]))
    wanted = {
        "average": x.mean(0),
        "add": x[0] + x[1] + x[2],
        "subtract": x[0] - (x[1] + x[2]) / 2,
        "max": x.max(0).values,
        "min": x.min(0).values,
    }
    both = combine([first, second], method, factors)
    assert both.cond.shape == (1, 4, 6)
    torch.testing.assert_close(both.cond[0], wanted[method], rtol=0, atol=1e-15)
    torch.testing.assert_close(both.uncond[0], (first.uncond[0] + second.uncond[0]) / 2, rtol=0, atol=1e-15)


def test_norm_average_is_the_mean_direction_at_the_tokens_usual_length() -> None:
    first, second = part(1, 1), part(1, 2)
    both = combine([first, second], "norm average", [1.0, 1.0]).cond[0]
    directions = (normalize(first.cond[0], dim=-1) + normalize(second.cond[0], dim=-1)) / 2
    lengths = (first.cond[0].norm(dim=-1, keepdim=True) + second.cond[0].norm(dim=-1, keepdim=True)) / 2
    torch.testing.assert_close(both, directions * lengths, rtol=0, atol=1e-12)


def test_norm_average_weighs_directions() -> None:
    first, second = part(1, 1), part(1, 2)
    mostly_first = combine([first, second], "norm average", [1.0, 0.01]).cond[0]
    similarity = torch.cosine_similarity(mostly_first, first.cond[0], dim=-1)
    assert similarity.min() > 0.99


def test_one_reference_alone_stays_itself() -> None:
    only = part(1, 1)
    for method in COMBINATIONS:
        torch.testing.assert_close(combine([only], method, [1.0]).cond, only.cond, rtol=0, atol=1e-12)


def test_combining_changes_none_of_its_parts() -> None:
    first, second = part(2, 1), part(2, 2)
    before = first.cond.clone(), second.cond.clone(), first.uncond.clone()
    for method in COMBINATIONS:
        combine([first, second], method, [0.5, 2.0])
    assert all(map(torch.equal, before, (first.cond, second.cond, first.uncond)))


@pytest.mark.parametrize(
    ("parts", "method", "factors", "error", "phrase"),
    [
        ([part(1, 1)], "blend", [1.0], BadInputError, "combination method 'blend'. Expected: one of concat, average"),
        ([part(1, 1), part(1, 2)], "add", [1.0], BadInputError, "1 weights for 2 tokens"),
        ([part(1, 1)], "add", [1.0, 2.0], BadInputError, "2 weights for 1 tokens"),
        ([part(1, 1), part(1, 2, tokens=5)], "add", [1.0, 1.0], MismatchError, "tokens of different lengths"),
        (
            [part(1, 1), ImageTokens(torch.ones(1, 4, 6), torch.ones(1, 4, 6), "b")],
            "concat",
            [1.0, 1.0],
            MismatchError,
            "tokens made by different adapters",
        ),
        ([part(1, 1)], "add", [float("inf")], BadInputError, "NaN or infinite"),
    ],
)
def test_what_cannot_be_combined_says_why(
    parts: list[ImageTokens], method: str, factors: list[float], error: type[Exception], phrase: str
) -> None:
    with pytest.raises(error, match=phrase) as caught:
        combine(parts, method, factors)
    assert " What to do: " in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", [0, 1])
def test_tokens_are_finite(side: int, value: float) -> None:
    sides = [torch.ones(1, 4, 6), torch.ones(1, 4, 6)]
    sides[side][0, 2, 3] = value
    with pytest.raises(BadInputError, match="image tokens with NaN or infinite values"):
        ImageTokens(sides[0], sides[1], "a")


def test_equal_content_has_an_equal_digest() -> None:
    assert part(2, 1).digest == part(2, 1).digest
    strided = ImageTokens(part(2, 1).cond.mT.contiguous().mT, part(2, 1).uncond, "a")
    assert strided.digest == part(2, 1).digest


def test_any_difference_changes_the_digest() -> None:
    cond, uncond = randn(2, 4, 6), randn(2, 4, 6, seed=1)
    nudged = cond.clone()
    nudged[1, 3, 5] += 1e-12
    variants = [
        ImageTokens(cond, uncond, "a"),
        ImageTokens(cond, uncond, "b"),
        ImageTokens(uncond, cond, "a"),
        ImageTokens(cond.flip(0), uncond, "a"),
        ImageTokens(cond.reshape(1, 8, 6), uncond.reshape(1, 8, 6), "a"),
        ImageTokens(cond, uncond[:1], "a"),
        ImageTokens(nudged, uncond, "a"),
    ]
    assert len({tokens.digest for tokens in variants}) == len(variants)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_repeating_the_shorter_side_changes_no_attention(references: int, negatives: int, tokens: int) -> None:
    both = part(references, 1, negatives=negatives, tokens=tokens)
    uncond, cond = both.sequences()
    assert uncond.shape == cond.shape
    q = randn(1, 3, 6, seed=9)
    for sequence, side in ((uncond, both.uncond), (cond, both.cond)):
        once = side.flatten(0, 1)[None]
        torch.testing.assert_close(
            scaled_dot_product_attention(q, sequence[None], sequence[None]),
            scaled_dot_product_attention(q, once, once),
            rtol=0,
            atol=1e-12,
        )


def test_sequences_of_equal_length_are_not_repeated() -> None:
    both = part(3, 1, negatives=3)
    uncond, cond = both.sequences()
    assert torch.equal(cond, both.cond.flatten(0, 1))
    assert torch.equal(uncond, both.uncond.flatten(0, 1))


def test_size_counts_both_sides() -> None:
    assert part(2, 1).num_bytes == (2 + 1) * 4 * 6 * 8
