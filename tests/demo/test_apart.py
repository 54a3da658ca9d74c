"""What the demo's base model is taught of halves that have nothing to do with each other."""

from dataclasses import replace

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from demo.world.apart import SHOWN, Pairs, difference, draw_pairs
from demo.world.base import UNET, Taught
from demo.world.image_prompts import WordsOf

COUNT = 64


def test_pairs_differ_in_one_half_and_in_what_tells_of_it() -> None:
    pairs = _pairs()
    first, second = pairs.x.chunk(2)
    assert torch.equal(first[..., pairs.shared], second[..., pairs.shared])
    assert not torch.isclose(first[..., ~pairs.shared], second[..., ~pairs.shared]).all(dim=(1, 2)).any()
    assert not torch.equal(*pairs.words.chunk(2))
    for same in (pairs.t, pairs.noise):
        assert torch.equal(*same.chunk(2))


def test_an_image_prompt_tells_of_the_half_that_differs_in_most_first_ones() -> None:
    pairs = _pairs()
    assert not pairs.shown[:, pairs.shared].any()
    told, untold = pairs.shown[:, ~pairs.shared].chunk(2)
    assert not untold.any()
    assert torch.equal(told.any(dim=1), told.all(dim=1))
    assert SHOWN - 0.2 < told.any(dim=1).float().mean() < SHOWN + 0.2


def test_either_half_may_be_the_shared_one() -> None:
    shared = [_pairs(seed).shared for seed in range(8)]
    assert {(bool(side[0, 0]), bool(side[0, -1])) for side in shared} == {(True, False), (False, True)}


def test_only_what_differs_in_the_shared_half_counts_and_by_its_weight() -> None:
    pairs = _pairs()
    weights = torch.full((2 * COUNT, 1, 1, 1), 4.0)
    predicted = torch.zeros_like(pairs.x)
    predicted[..., ~pairs.shared] = torch.randn(2 * COUNT, 4, 32)
    assert difference(predicted, pairs, weights) == 0
    predicted[:COUNT, ..., pairs.shared] += 0.5
    torch.testing.assert_close(difference(predicted, pairs, weights), torch.tensor(4 * 0.5**2))


@torch.no_grad()
def test_what_is_beside_and_what_tells_of_it_are_both_unlearned() -> None:
    torch.manual_seed(0)
    taught = Taught(UNet2DConditionModel(**UNET))
    pairs = _pairs(count=1)
    alike = replace(pairs, x=pairs.x[:1].repeat(2, 1, 1, 1), shown=torch.zeros_like(pairs.shown))
    told = replace(alike, shown=torch.stack((~pairs.shared, torch.zeros_like(pairs.shared))))
    caption = torch.zeros(77, 768)
    assert taught.difference(alike, caption) < 1e-9
    assert taught.difference(told, caption) > 1e-4
    assert taught.difference(replace(alike, x=pairs.x), caption) > 1e-4
    taught.close()


def _pairs(seed: int = 0, count: int = COUNT) -> Pairs:
    random = torch.Generator().manual_seed(seed)
    latents: Tensor = torch.randn(10_000, 4, 8, 8, generator=random)
    return draw_pairs(latents, count, 1000, WordsOf(2), random)
