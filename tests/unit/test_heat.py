"""Which tokens are whose, which step a call is of, and how what is added is shared out."""

from itertools import pairwise

import pytest
import torch

from ipadapter_core.branch.heat import HeatMaps, References, on_latent, shares, step_of_level
from ipadapter_core.errors import BadInputError


@pytest.mark.parametrize(
    ("references", "length", "owners"),
    [
        (References(), 3, [0, 0, 0]),
        (References(0, 2), 6, [0, 0, 0, 1, 1, 1]),
        (References(4, 2), 4, [0, 0, 1, 1]),
        (References(0, 2, 2), 8, [0, 0, 1, 1, 0, 0, 1, 1]),  # repeated, as its side was the shorter
    ],
)
def test_every_token_is_of_one_reference(references: References, length: int, owners: list[int]) -> None:
    columns = references.columns(length)
    assert columns.sum(dim=0).tolist() == [1] * length
    assert columns.argmax(dim=0).tolist() == owners


@pytest.mark.parametrize("levels", [(10.0, 5.0, 2.0, 0.0), (0.1, 2.0, 5.0, 10.0)])
def test_a_call_is_of_the_step_that_begins_at_its_level(levels: tuple[float, ...]) -> None:
    rounded = [level * (1 + off) for level in levels[:-1] for off in (-1e-6, 0, 1e-6)]
    assert [step_of_level(level, levels) for level in rounded] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    between = [(one + other) / 2 for one, other in pairwise(levels)]
    assert [step_of_level(level, levels) for level in between] == [0, 1, 2]
    assert step_of_level(levels[-1], levels) == 2
    assert step_of_level(12.0 if levels[0] == 10 else 0.0, levels) == 0, "noise was added before it"


def test_parts_that_point_the_same_way_have_their_lengths() -> None:
    direction = torch.tensor([3.0, 4.0]).expand(1, 5, 2)
    found = shares(5 * direction, [direction, 1.5 * direction])
    torch.testing.assert_close(found[:, 0], torch.tensor([5.0, 7.5, 12.5])[:, None].expand(3, 5))
    assert not shares(torch.zeros(1, 5, 2), [torch.zeros(1, 5, 2)]).any(), "nothing added, nothing shared"


def test_what_is_against_the_whole_counts_below_zero() -> None:
    image, against = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[-2.0, 7.0]]])
    assert shares(image, [against]).flatten().tolist() == pytest.approx([-2.0, 3.0])


def test_a_weight_of_channels_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other, weight = (torch.randn(2, 3, 4, generator=generator) for _ in range(3))
    given = shares(one + other, [one], weight)
    torch.testing.assert_close(given, shares((one + other) * weight, [one * weight]))
    torch.testing.assert_close(given.sum(dim=0), ((one + other) * weight).norm(dim=-1))


def test_where_a_guard_changed_it_the_parts_sum_to_what_was_added() -> None:
    one, other, held = torch.rand(3, 1, 4, 8)
    one[:, 0] = other[:, 0] = 0  # nothing to share out
    found = shares(one + other, [one], held=held)
    torch.testing.assert_close(found.sum(dim=0)[:, 1:], held[:, 1:].norm(dim=-1))
    assert not found[..., 0].any()
    plain = shares(one + other, [one])
    torch.testing.assert_close((found[0] / found[1])[:, 1:], (plain[0] / plain[1])[:, 1:])


def test_a_map_keeps_its_mean_and_leaves_the_padding_out() -> None:
    sums = torch.rand(2, 3, 12)
    whole = on_latent(sums, (3, 4), (6, 8), (6, 8))
    torch.testing.assert_close(whole.mean(dim=(-1, -2)), sums.mean(dim=-1))
    assert torch.equal(on_latent(sums, (3, 4), (6, 8), (5, 7)), whole[..., :5, :7])


def test_what_there_is_none_of_is_refused() -> None:
    maps = HeatMaps((torch.rand(2, 3, 1, 4, 4), torch.rand(2, 1, 1, 4, 4)), (2, 1))
    torch.testing.assert_close(maps.pick(1) + maps.pick(2), maps.pick())
    torch.testing.assert_close(maps.pick(1, 1) + maps.pick(1, 2), maps.pick(1))
    torch.testing.assert_close(maps.pick(0, 2), maps.pick(1, 2))
    for chosen in ((3, 0, 0), (1, 3, 0), (2, 2, 0), (0, 3, 0), (0, 0, 3)):
        with pytest.raises(BadInputError, match="a number from 0, which is all"):
            maps.pick(*chosen)
